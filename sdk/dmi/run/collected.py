"""The optimizer's state on its way to the lead: a few buckets of each shard at a time, so that no server is kept busy by it
and whatever does not come is asked for again by itself."""

from collections.abc import Sequence
from typing import Any

from dmi_protocol.messages import parameters as say
from dmi_protocol.training.layout import Layout
from dmi_tensor.frames import tensors_of
from dmi_tensor.replica import unpack_state

_AT_ONCE = 4
"""Buckets of one shard that are under way."""


class Collected:
    """Of all parameters in ``layout``; ``owner`` gives the shard of each bucket."""

    def __init__(self, layout: Layout, owner: Sequence[int]) -> None:
        self._missing: dict[int, list[int]] = {}
        self._under_way: dict[int, list[int]] = {}
        for bucket in layout.buckets:
            if bucket.kind == "parameter":
                self._missing.setdefault(owner[bucket.index], []).append(bucket.index)
        self.state: dict[tuple[int, int], dict[str, Any]] = {}
        """By bucket and segment."""
        self.hyper = b""

    @property
    def is_whole(self) -> bool:
        """Is all of it here?"""
        return not any(self._missing.values()) and not any(self._under_way.values())

    def next(self, shard: int) -> tuple[int, ...]:
        """What is to be asked for now; from here on it is under way."""
        there, missing = self._under_way.setdefault(shard, []), self._missing.get(shard, [])
        new = missing[: max(0, _AT_ONCE - len(there))]
        del missing[: len(new)]
        there += new
        return tuple(new)

    def under_way(self, shard: int) -> tuple[int, ...]:
        """What was asked for and has not come."""
        return tuple(self._under_way.get(shard, ()))

    def take(self, message: say.State, frames: Sequence[memoryview]) -> None:
        """A bucket's state; one that came twice is the same twice. Raises ``RemoteProtocolError``."""
        if message.bucket not in self._under_way.get(message.shard, ()):
            return
        for place, values in enumerate(unpack_state(message.state, tensors_of(message.tensors, frames))):
            self.state[message.bucket, place] = values
        self.hyper = self.hyper or message.hyper
        self._under_way[message.shard].remove(message.bucket)
