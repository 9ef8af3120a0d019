"""Where each parameter and buffer lies: a pure function of the model and the job, never of the number of servers.

All tensors of one kind, parameter group and dtype lie one after the other in an *arena*, each on a 64-byte boundary.
An arena is cut into buckets. A bucket never mixes groups or dtypes; a tensor is cut only where its optimizer looks at
each element alone, and its pieces stay adjacent, so that a model's parameter is one view of its arena.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.tensor_spec import ITEM_BYTES

Kind = Literal["parameter", "average", "agree", "metrics", "frozen"]
"""What becomes of a bucket's leaf sums: an optimizer step; the weighted mean (float buffers); the one value that all
leaves have in common (integer and bool buffers); the reported numbers; nothing, ever."""


class ParameterSpec(Struct, frozen=True):
    """A parameter under its first name. ``group`` is the optimizer's parameter group, -1 when it is frozen."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int


class BufferSpec(Struct, frozen=True):
    """A buffer. Only persistent ones are exported."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    persistent: bool


class Definition(Struct, frozen=True):
    """All that a server must know of a training: equal on all workers.

    ``order`` gives the parameters of each group as the optimizer counts them. ``whole`` says that the optimizer looks
    at whole tensors. ``clip_norm`` bounds the global norm of the gradient, None when it is not clipped.
    """

    parameters: tuple[ParameterSpec, ...]
    buffers: tuple[BufferSpec, ...]
    order: tuple[tuple[str, ...], ...]
    optimizer: str
    whole: bool
    leaves: int
    clip_norm: float | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter and buffer by its name."""
        return {p.name: p.shape for p in self.parameters} | {b.name: b.shape for b in self.buffers}


class Segment(Struct, frozen=True):
    """A run of one tensor's elements in a bucket: ``length`` elements of the flattened tensor from ``start`` on, which
    lie at ``offset`` in the bucket. ``shape`` is the tensor's when it is all there, else ``(length,)``."""

    name: str
    start: int
    offset: int
    length: int
    shape: tuple[int, ...]


class Bucket(Struct, frozen=True):
    """``length`` elements of its arena from ``offset`` on. ``group`` is -1 where there is none."""

    index: int
    kind: Kind
    dtype: str
    group: int
    offset: int
    length: int
    segments: tuple[Segment, ...]

    @property
    def length_bytes(self) -> int:
        """The bytes of this bucket's elements."""
        return self.length * ITEM_BYTES[self.dtype] if self.kind != "metrics" else 0

    @property
    def arena(self) -> tuple[Kind, int, str]:
        """Which arena this bucket is cut from."""
        return self.kind, self.group, self.dtype


class Layout(Struct, frozen=True):
    """Every bucket by its index: first those that change (``live`` of them), then the frozen ones."""

    buckets: tuple[Bucket, ...]
    live: int

    @property
    def metrics(self) -> int:
        """The bucket of the reported numbers: the last live one."""
        return self.live - 1


class _Tensor(Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    group: int

    @property
    def length(self) -> int:
        length = 1
        for size in self.shape:
            length *= size
        return length


def lay_out(definition: Definition, bucket_bytes: int = limits.BUCKET_BYTES) -> Layout:
    """The layout of ``definition``'s tensors in buckets of about ``bucket_bytes``."""
    tensors = [
        _Tensor(p.name, p.shape, p.dtype, "frozen" if p.group < 0 else "parameter", p.group)
        for p in definition.parameters
    ]
    tensors += [_Tensor(b.name, b.shape, b.dtype, _buffer_kind(b.dtype), -1) for b in definition.buffers]
    order: list[Kind] = ["parameter", "average", "agree", "frozen"]
    tensors.sort(key=lambda t: (order.index(t.kind), t.group, t.dtype))  # stable: the model's order within an arena
    live: list[Bucket] = []
    frozen: list[Bucket] = []
    for (kind, _, _), arena in groupby(tensors, key=lambda t: (t.kind, t.group, t.dtype)):
        may_cut = kind == "frozen" or (kind == "parameter" and not definition.whole)
        (frozen if kind == "frozen" else live).extend(_cut(list(arena), bucket_bytes, may_cut=may_cut))
    live.append(Bucket(0, "metrics", "float64", -1, 0, 0, ()))
    numbered = [_numbered(bucket, index) for index, bucket in enumerate([*live, *frozen])]
    return Layout(tuple(numbered), len(live))


def _buffer_kind(dtype: str) -> Kind:
    return "average" if "float" in dtype else "agree"


def _numbered(bucket: Bucket, index: int) -> Bucket:
    return Bucket(index, bucket.kind, bucket.dtype, bucket.group, bucket.offset, bucket.length, bucket.segments)


def _cut(tensors: Sequence[_Tensor], bucket_bytes: int, *, may_cut: bool) -> list[Bucket]:
    """One arena's buckets. Every piece starts on a boundary, so a piece that is cut off fills its bucket exactly."""
    first = tensors[0]
    grain = max(1, limits.ALIGNMENT_BYTES // ITEM_BYTES[first.dtype])
    room = max(grain, bucket_bytes // ITEM_BYTES[first.dtype] // grain * grain)
    buckets: list[Bucket] = []
    segments: list[Segment] = []
    begin = end = 0

    def close() -> None:
        nonlocal begin
        if segments:
            buckets.append(Bucket(0, first.kind, first.dtype, first.group, begin, end - begin, tuple(segments)))
        segments.clear()
        begin = end

    for tensor in tensors:
        for start, length in _pieces(tensor, room, may_cut=may_cut):
            if end - begin + length > room:
                close()
            shape = tensor.shape if length == tensor.length else (length,)
            segments.append(Segment(tensor.name, start, end - begin, length, shape))
            end += -(-length // grain) * grain
    close()
    return buckets


def _pieces(tensor: _Tensor, room: int, *, may_cut: bool) -> Iterable[tuple[int, int]]:
    """``(start, length)`` of the tensor's pieces: one, unless it is larger than a bucket and may be cut."""
    if not may_cut or tensor.length <= room:
        return [(0, tensor.length)]
    return [(start, min(room, tensor.length - start)) for start in range(0, tensor.length, room)]


def assign_buckets(layout: Layout, shards: int) -> tuple[int, ...]:
    """The shard of each bucket: the largest first, each to the lightest shard so far; ties go to the lower number."""
    weights = [0] * shards
    owner = [0] * len(layout.buckets)
    for bucket in sorted(layout.buckets, key=lambda b: (-b.length_bytes, b.index)):
        shard = min(range(shards), key=lambda s: (weights[s], s))
        owner[bucket.index] = shard
        weights[shard] += bucket.length_bytes
    return tuple(owner)
