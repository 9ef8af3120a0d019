"""The memory of a model: arenas cut into buckets, and the model's own tensors as views of them."""

from collections.abc import Iterable, Mapping

import torch

from dmi_protocol import limits
from dmi_protocol.training.layout import Bucket, Kind, Layout, Segment
from dmi_tensor.dtypes import DTYPES, sum_dtype

_SLACK = limits.ALIGNMENT_BYTES


def aligned_empty(length: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor of ``length`` elements whose first byte lies on a 64-byte boundary."""
    raw = torch.empty(length * dtype.itemsize + _SLACK, dtype=torch.uint8)
    skip = -raw.data_ptr() % limits.ALIGNMENT_BYTES
    return raw[skip : skip + length * dtype.itemsize].view(dtype)


def view_of(bucket: torch.Tensor, segment: Segment) -> torch.Tensor:
    """The part of a flat bucket that is ``segment``, in its shape."""
    return bucket[segment.offset : segment.offset + segment.length].view(segment.shape)


def word_sum(bucket: torch.Tensor) -> int:
    """The sum of a flat bucket, which is a whole number of cache lines, as 64-bit words, modulo 2**64: whoever writes the bucket
    changes it, unless by an exact exchange of words. It costs one look at the memory."""
    return int(bucket.view(torch.int64).sum())


class Buckets:
    """One version of all buckets of a layout, as a worker has them: views of contiguous arenas."""

    def __init__(self, layout: Layout, kinds: Iterable[Kind] = ("parameter", "average", "agree", "frozen")) -> None:
        self.layout = layout
        wanted = set(kinds)
        self._arenas: dict[tuple[Kind, int, str], torch.Tensor] = {}
        lengths: dict[tuple[Kind, int, str], int] = {}
        for bucket in layout.buckets:
            if bucket.kind in wanted:
                lengths[bucket.arena] = bucket.offset + bucket.length
        for arena, length in lengths.items():
            self._arenas[arena] = aligned_empty(length, DTYPES[arena[2]]).zero_()

    def bucket(self, index: int) -> torch.Tensor:
        """Bucket ``index``, flat; an empty tensor for the metrics bucket."""
        bucket = self.layout.buckets[index]
        if bucket.kind == "metrics":
            return torch.empty(0)
        return self._arenas[bucket.arena][bucket.offset : bucket.offset + bucket.length]

    def tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Every named tensor as one view of its arena, in the shape that ``shapes`` gives."""
        found: dict[str, torch.Tensor] = {}
        for bucket in self.layout.buckets:
            for segment in bucket.segments:
                if segment.start == 0:
                    shape = shapes[segment.name]
                    start = bucket.offset + segment.offset
                    found[segment.name] = self._arenas[bucket.arena][start : start + _elements(shape)].view(shape)
        return found


def _elements(shape: tuple[int, ...]) -> int:
    length = 1
    for size in shape:
        length *= size
    return length


class Pool:
    """Recycled flat tensors, by dtype and length: fresh memory costs more than the sum that goes into it."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}

    def take(self, bucket: Bucket) -> torch.Tensor | None:
        """A tensor for a sum of ``bucket``, with old contents, and zeros between the segments. The metrics bucket has
        none."""
        if bucket.kind == "metrics":
            return None
        dtype = sum_dtype(bucket.dtype)
        free = self._free.get((dtype, bucket.length))
        tensor = free.pop() if free else aligned_empty(bucket.length, dtype)
        end = 0
        for segment in bucket.segments:
            tensor[end : segment.offset].zero_()
            end = segment.offset + segment.length
        tensor[end:].zero_()
        return tensor

    def give(self, tensor: torch.Tensor) -> None:
        """Nobody reads ``tensor`` any more."""
        self._free.setdefault((tensor.dtype, tensor.numel()), []).append(tensor)
