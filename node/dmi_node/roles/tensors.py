"""The tensors of a server: where handles point, and the memory that it shares with the worker beside it."""

from collections.abc import Callable, Collection, Sequence

import torch
import zmq
from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.codec import decode_struct
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.messages import parameters as say
from dmi_protocol.tensor_spec import ITEM_BYTES, TensorSpec
from dmi_protocol.training import exchange as x
from dmi_protocol.training.layout import Definition, Layout, assign_buckets, lay_out
from dmi_protocol.training.step import Handle
from dmi_tensor.buckets import aligned_empty
from dmi_tensor.checkpoint import Part, extra_of, part_of, restore
from dmi_tensor.dtypes import sum_dtype
from dmi_tensor.frames import frame_of, spec_of, tensors_of
from dmi_tensor.optimizers import ELEMENTWISE, WHOLE
from dmi_tensor.replica import Bucketful, bucketful, pack_state, put_in_place
from dmi_tensor.shard import Shard
from dmi_tensor.tree_sum import Share, add, share_of
from dmi_wire.shared_memory import Segment

_LENT_S = 60.0
"""How long a socket may hold a version that is to be overwritten: whoever takes part has had it by then."""


class Shown(Struct, frozen=True):
    """What ``Show`` carries: a region of shared memory for the worker beside us, frames for the others."""

    tensors: tuple[TensorSpec, ...]
    detail: bytes
    region: say.Region | None
    frames: tuple[memoryview, ...]


class _Arena:
    """The segment in which the shown buckets lie, and its allocator."""

    def __init__(self, size: int) -> None:
        self.segment = Segment.create(size)
        self._used = 0
        self.offsets: dict[int, int] = {}
        """Where a tensor lies that starts at this address."""

    def allocate(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """A flat tensor inside the segment, on a 64-byte boundary."""
        size = length * dtype.itemsize
        view = self.segment.view(self._used, size)
        tensor = torch.frombuffer(view, dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
        self.offsets[tensor.data_ptr()] = self._used
        self._used += _aligned(size)
        return tensor


def _aligned(size: int) -> int:
    return -(-size // limits.ALIGNMENT_BYTES) * limits.ALIGNMENT_BYTES


def _check(definition: Definition) -> None:
    """Raise ``RemoteProtocolError`` for what no script can describe, before memory is taken for it."""
    leaves = definition.leaves
    if not 1 <= leaves <= limits.LEAVES or leaves & (leaves - 1):
        raise RemoteProtocolError(f"{leaves} leaves where a power of two up to {limits.LEAVES} is meant")
    if definition.optimizer not in ELEMENTWISE | WHOLE:
        raise RemoteProtocolError(f"the unknown optimizer {definition.optimizer[:40]!r}")
    described = [(p.dtype, p.shape) for p in definition.parameters] + [(b.dtype, b.shape) for b in definition.buffers]
    for dtype, shape in described:
        if dtype not in ITEM_BYTES or any(size < 0 for size in shape):
            raise RemoteProtocolError(f"no tensor is a {dtype[:40]!r} of shape {shape[:8]}")


class Tensors:
    """What the shard's machine speaks of by handles. ``shares_memory`` says that a worker is on this node; ``parts`` are
    those of the checkpoint that the job goes on from, all that hold buckets of this shard; ``meanwhile`` is called again and
    again in whatever takes long."""

    def __init__(
        self,
        shard: int,
        shards: int,
        *,
        shares_memory: bool,
        parts: Sequence[Part] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self._shard, self._shards, self._shares_memory, self._meanwhile = shard, shards, shares_memory, meanwhile
        self._parts = tuple(parts)
        self.extra = extra_of(parts)
        """What the checkpoint keeps of the run itself."""
        self._arithmetic: Shard | None = None
        self._arena: _Arena | None = None
        self._offering: set[int] = set()
        self._offered: dict[int, Segment] = {}
        self._shares: dict[Handle, tuple[int, Share]] = {}
        self._next = 0
        self._neighbours: set[Handle] = set()
        """Shares that lie in the memory of a worker beside us."""
        self.replicates = False
        """Are roots sent to copies? They must stay as they are then."""
        self._lent: dict[tuple[int, int], list[tuple[int, zmq.MessageTracker]]] = {}

    @property
    def arithmetic(self) -> Shard:
        """The shard, once a worker has described it."""
        if self._arithmetic is None:
            raise RemoteProtocolError("a worker goes on before it has described its model")
        return self._arithmetic

    def open(self, encoded: bytes) -> x.Opened:
        """Make room for what a worker has described; ``RemoteProtocolError`` when it makes no sense, ``CorruptPartError``
        when the checkpoint is none of this model."""
        definition: Definition = decode_struct(encoded, Definition)
        _check(definition)
        layout = lay_out(definition)
        if len(layout.buckets) > limits.BUCKETS:
            raise RemoteProtocolError(f"a model of {len(layout.buckets)} buckets, more than {limits.BUCKETS}")
        self._arena = self._make_arena(layout)
        allocate = aligned_empty if self._arena is None else self._arena.allocate

        def memory(length: int, dtype: torch.dtype) -> torch.Tensor:
            self._meanwhile()
            return allocate(length, dtype)

        self._arithmetic = Shard(definition, self._shard, self._shards, memory)
        step = restore(self._arithmetic, self._parts, self._meanwhile) if self._parts else None
        fingerprint = self._parts[0].header.fingerprint if self._parts else ()
        self._parts = ()
        holders = {self._arithmetic.owners[bucket.index] for bucket in layout.buckets[: layout.live]}
        return x.Opened(
            self._arithmetic.buckets,
            self._arithmetic.frozen,
            definition.leaves,
            clips=definition.clip_norm is not None,
            shards=tuple(sorted(holders)),
            step=step,
            fingerprint=fingerprint,
        )

    def _make_arena(self, layout: Layout) -> _Arena | None:
        """Room for two versions of each bucket of ours; None when nobody is beside us, or there is no such room."""
        owners = assign_buckets(layout, self._shards)
        mine = [bucket for bucket in layout.buckets if owners[bucket.index] == self._shard]
        size = sum(2 * _aligned(bucket.length_bytes) for bucket in mine)
        if not self._shares_memory or size == 0:
            return None
        try:
            return _Arena(size)
        except OSError:  # no such room: the socket carries it then
            return None

    def offer(self, worker: int) -> tuple[str | None, int]:
        """Name and size of our segment, for a worker that has offered one itself."""
        if self._arena is None or worker not in self._offered:
            return None, 0
        self._offering.add(worker)
        return self._arena.segment.name, self._arena.segment.size

    def has_mapped(self, worker: int) -> None:
        """This worker goes on, so it has mapped what it was offered; after the last one nobody else shall."""
        self._offering.discard(worker)
        if self._arena is not None and not self._offering:
            self._arena.segment.withdraw()

    def part(self, step: int, extra: bytes, fingerprint: tuple[tuple[str, str], ...]) -> Part:
        """Our part of version ``step``, with the optimizer's state, in memory of its own."""
        part = part_of(self.arithmetic, self._shard, self._shards, step, extra, fingerprint)
        return part.copy(self._meanwhile)

    def greet(self, worker: int, name: str | None, size: int) -> None:
        """Map the memory that the worker beside us offers; nothing is mapped for anybody else."""
        if name is not None:
            self._offered[worker] = Segment.attach(name, size)

    def initialize(self, bucket: int, specs: Sequence[TensorSpec], frames: Sequence[memoryview]) -> None:
        """Version 0 of a bucket."""
        if bucket not in self.arithmetic.buckets + self.arithmetic.frozen:
            raise RemoteProtocolError(f"bucket {bucket} is not of shard {self._shard}")
        tensors = tensors_of(specs, frames)
        if len(tensors) > 1:
            raise RemoteProtocolError("a bucket's values are one tensor")
        if tensors:
            self._check(bucket, tensors[0], self.arithmetic.read(bucket, 0).dtype)
            self.arithmetic.initialize(bucket, tensors[0])

    def _check(self, bucket: int, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        expected = self.arithmetic.layout.buckets[bucket].length
        if tensor.shape != (expected,) or tensor.dtype != dtype:
            raise RemoteProtocolError(f"bucket {bucket} has {expected} elements of {dtype}")

    def put(self, worker: int, message: say.Contribution, frames: Sequence[memoryview]) -> Handle | None:
        """Name what came; None for an explicit absent."""
        if message.bucket not in self.arithmetic.buckets:
            raise RemoteProtocolError(f"bucket {message.bucket} is not of shard {self._shard}, or does not change")
        if not message.detail:
            return None
        if message.region is not None:
            frames = [self._shared(worker, message.region, spec) for spec in message.tensors]
        tensors = tensors_of(message.tensors, frames)
        bucket = self.arithmetic.layout.buckets[message.bucket]
        if len(tensors) != (bucket.kind != "metrics"):
            raise RemoteProtocolError(f"{len(tensors)} tensors for bucket {bucket.index}")
        if tensors:
            self._check(bucket.index, tensors[0], sum_dtype(bucket.dtype))
        share = share_of(tensors[0] if tensors else None, message.detail, len(bucket.segments))
        handle = self._name(bucket.index, share)
        if message.region is not None:
            self._neighbours.add(handle)
        return handle

    def _shared(self, worker: int, region: say.Region, spec: TensorSpec) -> memoryview:
        segment = self._offered.get(worker)
        if segment is None or segment.name != region.segment:
            raise RemoteProtocolError(f"worker-{worker} speaks of shared memory that it has not offered")
        return segment.view(region.offset, spec.length_bytes)

    def put_root(self, message: say.Replicate, frames: Sequence[memoryview]) -> Handle | None:
        """Name the sum that a primary has finished; None for an explicit absent."""
        if message.bucket not in self.arithmetic.buckets:
            raise RemoteProtocolError(f"bucket {message.bucket} is not of shard {self._shard}, or does not change")
        if not message.detail:
            return None
        tensors = tensors_of(message.tensors, frames)
        bucket = self.arithmetic.layout.buckets[message.bucket]
        if len(tensors) != (bucket.kind != "metrics"):
            raise RemoteProtocolError(f"{len(tensors)} tensors for bucket {bucket.index}")
        if tensors:
            self._check(bucket.index, tensors[0], sum_dtype(bucket.dtype))
        return self._name(
            message.bucket, share_of(tensors[0] if tensors else None, message.detail, len(bucket.segments))
        )

    def _name(self, bucket: int, share: Share) -> Handle:
        self._next += 1
        self._shares[Handle(self._next)] = (bucket, share)
        return Handle(self._next)

    def root(self, handle: Handle | None) -> Shown:
        """What ``Replicate`` carries; nothing when it is absent."""
        share = self._get(handle)
        if share is None:
            return Shown((), b"", None, ())
        if share.tensor is None:
            return Shown((), share.detail, None, ())
        return Shown((spec_of(share.tensor),), share.detail, None, (frame_of(share.tensor),))

    def copy_out(self, bucket: int, version: int) -> Bucketful:
        """A bucket for another server that is to have a copy."""
        return bucketful(self.arithmetic, bucket, version)

    def optimizer_state(self, bucket: int) -> Bucketful:
        """A bucket without its values, for the lead's own file. Raises ``RemoteProtocolError``."""
        if bucket not in self.arithmetic.buckets:
            raise RemoteProtocolError(f"bucket {bucket} is not of shard {self._shard}, or does not change")
        tensors, state = pack_state(self.arithmetic, bucket)
        return Bucketful(tensors, state, self.arithmetic.hyper, b"")

    def copy_in(self, message: say.Copy, frames: Sequence[memoryview]) -> None:
        """A bucket from the primary; ``RemoteProtocolError`` when it is not like ours."""
        if message.bucket not in self.arithmetic.buckets + self.arithmetic.frozen:
            raise RemoteProtocolError(f"bucket {message.bucket} is not of shard {self._shard}")
        found = Bucketful(tensors_of(message.tensors, frames), message.state, message.hyper, message.detail)
        put_in_place(self.arithmetic, message.bucket, message.version, found)

    def add(self, left: Handle, right: Handle) -> None:
        """The tree's addition, in memory of ours: a worker beside us keeps its sums until the next version is whole.

        Left plus right has the same bits as right plus left.
        """
        bucket, share = self._shares[left]
        _, other = self._shares.pop(right)
        if left in self._neighbours:
            share, other = (self._own(share), other) if right in self._neighbours else (other, share)
        self._neighbours -= {left, right}
        self._shares[left] = (bucket, add(self.arithmetic.layout.buckets[bucket], share, other))

    @staticmethod
    def _own(share: Share) -> Share:
        return Share(None if share.tensor is None else share.tensor.clone(), share.weights, share.metrics)

    def release(self, handle: Handle) -> None:
        """The frame goes back to zmq, or to the worker beside us."""
        del self._shares[handle]
        self._neighbours.discard(handle)

    def _get(self, handle: Handle | None) -> Share | None:
        return None if handle is None else self._shares[handle][1]

    def square(self, bucket: int, handle: Handle | None) -> float:
        """The squared norm of a root."""
        return self.arithmetic.square(bucket, self._get(handle))

    def apply(self, effect: x.ApplyRoot) -> None:
        """One optimizer step on one bucket; waits until no socket holds what is overwritten."""
        for _, tracker in self._lent.pop((effect.bucket, effect.step - 1), []):
            tracker.wait(_LENT_S)
        root = self._get(effect.handle)
        if root is not None and effect.norms and (self.replicates or effect.handle in self._neighbours):
            root = self._own(root)  # clipping scales it in place
        self.arithmetic.apply(effect.step, effect.bucket, root, effect.hyper, effect.norms)

    def show(self, worker: int, version: int, bucket: int, *, has_before: bool = False) -> Shown:
        """A bucket at a version that is readable; nothing of it to a worker that ``has`` the one ``before``, if it is the
        same."""
        detail = self.arithmetic.detail(bucket)
        is_same = has_before and self.arithmetic.is_as_before(bucket, version)
        if is_same or self.arithmetic.layout.buckets[bucket].kind == "metrics":
            return Shown((), detail, None, ())
        tensor = self.arithmetic.read(bucket, version)
        if worker in self._offered and self._arena is not None:
            region = say.Region(self._arena.segment.name, self._arena.offsets[tensor.data_ptr()])
            return Shown((spec_of(tensor),), detail, region, ())
        return Shown((spec_of(tensor),), detail, None, (frame_of(tensor),))

    def lend(self, worker: int, bucket: int, version: int, tracker: zmq.MessageTracker | None) -> None:
        """A socket holds this version for a worker until the tracker is done."""
        if tracker is not None and not tracker.done:
            self._lent.setdefault((bucket, version), []).append((worker, tracker))

    def keep_lent(self, workers: Collection[int]) -> None:
        """Others than these take part no more: what still waits for them in a socket, maybe for a host that is gone, holds
        nobody up, and nobody looks at what comes of it."""
        self._lent = {
            place: [(worker, tracker) for worker, tracker in lent if worker in workers]
            for place, lent in self._lent.items()
        }
