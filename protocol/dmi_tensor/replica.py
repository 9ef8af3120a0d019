"""A bucket as it travels to a copy: its values, and the state of its optimizer."""

from collections.abc import Iterable, Iterator, Sequence
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
    is_metrics = shard.layout.buckets[bucket].kind == "metrics"
    values = () if is_metrics else (shard.read(bucket, version).clone(),)
    tensors, state = pack_state(shard, bucket)
    return Bucketful((*values, *tensors), state, shard.hyper, shard.detail(bucket))


def pack_state(shard: Shard, bucket: int) -> tuple[tuple[torch.Tensor, ...], bytes]:
    """The state of the bucket's optimizer, of each of its segments: tensors in memory that nobody writes, and what names
    them."""
    tensors: list[torch.Tensor] = []
    names: list[list[_Named]] = []
    for values in shard.state(bucket) if shard.layout.buckets[bucket].kind == "parameter" else ():
        there = {name: value for name, value in values.items() if value is not None}
        names.append([(name, None if isinstance(value, torch.Tensor) else value) for name, value in there.items()])
        tensors += [value.clone() for value in there.values() if isinstance(value, torch.Tensor)]
    packed: bytes = msgpack.packb(names)
    return tuple(tensors), packed


def unpack_state(packed: bytes, tensors: Iterable[torch.Tensor]) -> list[dict[str, Any]]:
    """What ``pack_state`` was given, by segment. Raises ``RemoteProtocolError``."""
    rest = iter(tensors)
    return [dict(_values(named, rest)) for named in convert(unpack(packed), list[list[_Named]])]


def put_in_place(shard: Shard, bucket: int, version: int, found: Bucketful) -> None:
    """Make ``bucket`` of ``shard`` what ``bucketful`` gave elsewhere. Raises ``RemoteProtocolError``."""
    layout = shard.layout.buckets[bucket]
    if layout.kind == "metrics":
        shard.set_detail(bucket, found.detail)
        return
    if not found.tensors:
        raise RemoteProtocolError(f"bucket {bucket} comes without its values")
    values = found.tensors[0]
    expected = shard.read(bucket, version)
    if values.shape != expected.shape or values.dtype != expected.dtype:
        raise RemoteProtocolError(f"bucket {bucket} has {expected.numel()} elements of {expected.dtype}")
    state = unpack_state(found.state, found.tensors[1:])
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
