"""The tensors of a worker: where handles point, and which memory a leaf's share is written into.

The sum of a subtree ends up in the memory of its first leaf. So those shares that will be pushed to the server beside
us are made in shared memory from the start, and pushing them moves no byte.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
import zmq

from dmi_protocol import limits
from dmi_protocol.messages.parameters import Region
from dmi_protocol.training.layout import Layout
from dmi_protocol.training.step import Handle, Subtree
from dmi_tensor.buckets import Pool
from dmi_tensor.dtypes import sum_dtype
from dmi_tensor.tree_sum import Share, add
from dmi_wire.shared_memory import Segment


class Neighbour:
    """Shared memory for the sums of some subtrees of some buckets, written here and read by the server beside us."""

    def __init__(self, layout: Layout, buckets: Sequence[int], tops: Sequence[Subtree]) -> None:
        """``OSError`` when there is no such room."""
        self._places: dict[tuple[int, int], int] = {}
        end = 0
        for bucket in buckets:
            dtype, length = sum_dtype(layout.buckets[bucket].dtype), layout.buckets[bucket].length
            for top in tops:
                self._places[bucket, top.first] = end
                end += -(-length * dtype.itemsize // limits.ALIGNMENT_BYTES) * limits.ALIGNMENT_BYTES
        self.segment = Segment.create(max(end, 1))
        self._tensors = {
            place: self._tensor(layout, place[0], offset)
            for place, offset in self._places.items()
            if layout.buckets[place[0]].length
        }
        self._regions = {
            tensor.data_ptr(): Region(self.segment.name, self._places[place]) for place, tensor in self._tensors.items()
        }

    def _tensor(self, layout: Layout, bucket: int, offset: int) -> torch.Tensor:
        dtype, length = sum_dtype(layout.buckets[bucket].dtype), layout.buckets[bucket].length
        view = self.segment.view(offset, length * dtype.itemsize)
        return torch.frombuffer(view, dtype=torch.uint8).view(dtype).zero_()

    def place(self, bucket: int, leaf: int) -> torch.Tensor | None:
        """Where the sum of the subtree that begins with ``leaf`` is to be made, if it goes to our neighbour."""
        return self._tensors.get((bucket, leaf))

    def region(self, tensor: torch.Tensor) -> Region | None:
        """How the server finds ``tensor``; None when it is not in this memory."""
        return self._regions.get(tensor.data_ptr())


def neighbours(
    layout: Layout, owner: Sequence[int], shards: Sequence[int], tops: Sequence[Subtree]
) -> dict[int, Neighbour]:
    """Shared memory with the primaries of ``shards``, which are on this host. Where there is no room for it the socket
    carries the sums."""
    found: dict[int, Neighbour] = {}
    for shard in shards:
        with suppress(OSError):
            found[shard] = Neighbour(layout, [b for b in range(layout.live) if owner[b] == shard], tops)
    return found


class Shares:
    """What the worker's machine speaks of by handles."""

    def __init__(self, layout: Layout, neighbours: Mapping[int, Neighbour]) -> None:
        self._layout = layout
        self._neighbours = neighbours
        self._pool = Pool()
        self._held: dict[Handle, tuple[int, Share]] = {}
        self._next = 0
        self._sent: dict[Handle, list[zmq.MessageTracker]] = {}
        self._limbo: list[tuple[list[zmq.MessageTracker], torch.Tensor]] = []

    def take(self, bucket: int, leaf: int) -> Share:
        """Room for what ``leaf`` gives to ``bucket``; see ``Exchange.take``."""
        found = self._layout.buckets[bucket]
        tensor: torch.Tensor | None = None
        if found.kind != "metrics":
            neighbour = self._neighbours.get(bucket)
            tensor = None if neighbour is None else neighbour.place(bucket, leaf)
            tensor = self._pool.take(found) if tensor is None else tensor
        return Share(tensor, [0.0] * len(found.segments), {})

    def put(self, bucket: int, share: Share) -> Handle:
        """Name a share."""
        self._next += 1
        self._held[Handle(self._next)] = (bucket, share)
        return Handle(self._next)

    def get(self, handle: Handle) -> Share:
        """What a handle names."""
        return self._held[handle][1]

    def region(self, bucket: int, share: Share) -> Region | None:
        """How the server beside us finds the share's tensor, when it is where both can see it."""
        neighbour = self._neighbours.get(bucket)
        return None if neighbour is None or share.tensor is None else neighbour.region(share.tensor)

    def add(self, left: Handle, right: Handle) -> None:
        """The tree's addition. Raises ``DisagreementError``."""
        bucket, share = self._held[left]
        add(self._layout.buckets[bucket], share, self.get(right))
        self.release(right)

    def sent(self, handle: Handle, tracker: zmq.MessageTracker) -> None:
        """A socket holds the tensor until the tracker is done."""
        self._sent.setdefault(handle, []).append(tracker)

    def release(self, handle: Handle) -> None:
        """The tensor is used again once no socket holds it."""
        bucket, share = self._held.pop(handle)
        trackers = self._sent.pop(handle, [])
        if share.tensor is not None and self.region(bucket, share) is None:
            self._limbo.append((trackers, share.tensor))
        for item in [each for each in self._limbo if all(tracker.done for tracker in each[0])]:
            self._limbo.remove(item)
            self._pool.give(item[1])
