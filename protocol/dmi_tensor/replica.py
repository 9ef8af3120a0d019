"""A bucket as it travels to a copy: its values, and the state of its optimizer."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import torch
from msgspec import Struct

from dmi_protocol.codec import convert, unpack
from dmi_protocol.errors import RemoteProtocolError
from dmi_tensor.optimizers import check_state, kept_of
from dmi_tensor.shard import Shard

_Named = tuple[str, int | float | bool | None]
"""The name of a value, and the value; None stands for the next tensor."""


class Bucketful(Struct, frozen=True):
    """``tensors`` are the values (none for the metrics bucket), then those of the state in the order of ``state``."""

    tensors: tuple[torch.Tensor, ...]
    state: bytes
    hyper: bytes
    detail: bytes


def bucketful(shard: Shard, bucket: int, version: int) -> Bucketful:
    """``bucket`` at ``version``, the newest here, in memory that nobody writes."""
    kind = shard.layout.buckets[bucket].kind
    tensors = [] if kind == "metrics" else [shard.read(bucket, version).clone()]
    names: list[list[_Named]] = []
    for values in shard.state(bucket) if kind == "parameter" else ():
        there = {name: value for name, value in values.items() if value is not None}
        names.append([(name, None if isinstance(value, torch.Tensor) else value) for name, value in there.items()])
        tensors += [value.clone() for value in there.values() if isinstance(value, torch.Tensor)]
    packed: bytes = msgpack.packb(names)
    return Bucketful(tuple(tensors), packed, shard.hyper, shard.detail(bucket))


def put_in_place(shard: Shard, bucket: int, version: int, found: Bucketful) -> None:
    """Make ``bucket`` of ``shard`` what ``bucketful`` gave elsewhere. Raises ``RemoteProtocolError``."""
    layout = shard.layout.buckets[bucket]
    if layout.kind == "metrics":
        shard.set_detail(bucket, found.detail)
        return
    if not found.tensors:
        raise RemoteProtocolError(f"bucket {bucket} comes without its values")
    values, rest = found.tensors[0], iter(found.tensors[1:])
    expected = shard.read(bucket, version)
    if values.shape != expected.shape or values.dtype != expected.dtype:
        raise RemoteProtocolError(f"bucket {bucket} has {expected.numel()} elements of {expected.dtype}")
    state = [dict(_values(named, rest)) for named in convert(unpack(found.state), list[list[_Named]])]
    if state and len(state) != len(layout.segments):
        raise RemoteProtocolError(f"bucket {bucket} has {len(layout.segments)} segments, and {len(state)} states came")
    if layout.kind == "parameter" and (found.hyper or any(state)):
        optimizer, dtype = shard.definition.optimizer, values.dtype
        for segment, kept in zip(layout.segments, state or [{}] * len(layout.segments), strict=True):
            check_state(kept, kept_of(optimizer, segment.shape, dtype, found.hyper, layout.group))
    shard.restore(version, bucket, values, found.hyper, state)


def _values(named: Sequence[_Named], tensors: Iterator[torch.Tensor]) -> Iterator[tuple[str, Any]]:
    for name, value in named:
        if value is not None:
            yield name, value
            continue
        tensor = next(tensors, None)
        if tensor is None:
            raise RemoteProtocolError("the state of an optimizer lacks tensors")
        yield name, tensor
