"""The buffers of the script's module, however it writes them: in ``forward``, in place or by putting another tensor there, and
between the steps."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from msgspec import Struct
from torch import nn

from dmi.errors import UsageError
from dmi_protocol.training.layout import Bucket, Segment
from dmi_tensor.buckets import Buckets, view_of
from dmi_tensor.tree_sum import Share


class _Slot(Struct, frozen=True):
    """Where a module holds a buffer, and the tensor that belongs there; None where there is none."""

    holder: dict[str, torch.Tensor | None]
    key: str
    name: str
    tensor: torch.Tensor | None
    is_persistent: bool


class ModuleBuffers:
    """Of a module whose buffers lie in ``buckets``.

    A step begins with what the script has made of the installed version (``begin``); each leaf begins with that again
    (``reset``), and gives what it has changed (``collect``). What the script has written, and the leaf does not change, is given
    by the first leaf, with the weight 1, so that it stays what it is.

    A buffer that is not persistent may have another shape at a leaf's end, or be none: it is a cache, and each leaf begins with
    what was there at first.
    """

    def __init__(self, module: nn.Module, buckets: Buckets) -> None:
        self._buckets = buckets
        self._kinds = [bucket for bucket in buckets.layout.buckets if bucket.kind in {"average", "agree"}]
        self._slots = list(_slots(module))
        self._module = module
        self._installed = {bucket.index: buckets.bucket(bucket.index).clone() for bucket in self._kinds}
        self._before = {index: tensor.clone() for index, tensor in self._installed.items()}
        self._written = {bucket.index: [False] * len(bucket.segments) for bucket in self._kinds}

    def installed(self) -> None:
        """A version was put in place."""
        for index, tensor in self._installed.items():
            tensor.copy_(self._buckets.bucket(index))

    def put_back(self) -> None:
        """What the script has written since is done again by it."""
        self._follow()
        for index, tensor in self._installed.items():
            self._buckets.bucket(index).copy_(tensor)

    def begin(self) -> bytes:
        """A step begins; gives the digest of what the script has written since the version was put in place, empty if it has not.
        Raises ``UsageError``."""
        self._follow()
        self._check_known()
        digest = hashlib.sha256()
        for bucket in self._kinds:
            now, installed = self._buckets.bucket(bucket.index), self._installed[bucket.index]
            self._before[bucket.index].copy_(now)
            self._written[bucket.index] = [not _is_same(now, installed, segment) for segment in bucket.segments]
            for segment, written in zip(bucket.segments, self._written[bucket.index], strict=True):
                if written:
                    digest.update(segment.name.encode() + _bits(now, segment).numpy().tobytes())
        return digest.digest() if any(map(any, self._written.values())) else b""

    def are_written(self) -> bool:
        """Has the script written one since the version was put in place?"""
        self._follow()
        return any(
            not _is_same(self._buckets.bucket(bucket.index), self._installed[bucket.index], segment)
            for bucket in self._kinds
            for segment in bucket.segments
        )

    def check_unchanged(self) -> None:
        """Raise ``UsageError`` when one was changed since the step began."""
        self._follow()
        for bucket in self._kinds:
            now, before = self._buckets.bucket(bucket.index), self._before[bucket.index]
            for segment in bucket.segments:
                if not _is_same(now, before, segment):
                    raise UsageError(
                        f"buffer {segment.name} is changed by an evaluation, which changes nothing: let forward write it only "
                        "where self.training is set"
                    )

    def reset(self) -> None:
        """Before a leaf, and after the last one: all at the version with which the step began."""
        self._follow()
        for index, before in self._before.items():
            self._buckets.bucket(index).copy_(before)

    def collect(self, weight: float, take: Callable[[int], Share], *, is_first: bool) -> dict[int, Share]:
        """What the leaf that was just computed makes of them, times ``weight``. Raises ``UsageError``."""
        self._follow()
        shares: dict[int, Share] = {}
        for bucket in self._kinds:
            after, before = self._buckets.bucket(bucket.index), self._before[bucket.index]
            changed = [not _is_same(after, before, segment) for segment in bucket.segments]
            kept = [is_first and written for written in self._written[bucket.index]]
            weights = [weight if c else 1.0 if k else 0.0 for c, k in zip(changed, kept, strict=True)]
            if any(weights):
                shares[bucket.index] = _given(bucket, after, weights, take(bucket.index))
        return shares

    def _follow(self) -> None:
        """What was put in a buffer's place is copied into the buffer, which comes back there."""
        for slot in self._slots:
            now = slot.holder.get(slot.key)
            if now is slot.tensor:
                continue
            if slot.tensor is not None and _told(now) == _told(slot.tensor):
                assert now is not None
                slot.tensor.copy_(now.detach())
            elif slot.is_persistent:
                raise UsageError(
                    f"buffer {slot.name} is {_told(now)} now and was {_told(slot.tensor)} at run.optimizer(...): give it its "
                    "shape and dtype before that, and keep them, or register it with persistent=False if it is a cache"
                )
            slot.holder[slot.key] = slot.tensor

    def _check_known(self) -> None:
        known = {slot.name for slot in self._slots}
        for slot in _slots(self._module):
            if slot.is_persistent and slot.name not in known:
                raise UsageError(f"buffer {slot.name} is new: register all buffers before run.optimizer(...)")


def _slots(module: nn.Module) -> Iterator[_Slot]:
    for prefix, owner in module.named_modules():
        if isinstance(owner, torch.jit.ScriptModule):  # its buffers are views of what its own code holds
            continue
        for key, tensor in owner._buffers.items():
            name = f"{prefix}.{key}" if prefix else key
            yield _Slot(owner._buffers, key, name, tensor, key not in owner._non_persistent_buffers_set)


def _told(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _bits(bucket: torch.Tensor, segment: Segment) -> torch.Tensor:
    return bucket[segment.offset : segment.offset + segment.length].view(torch.uint8)


def _is_same(one: torch.Tensor, other: torch.Tensor, segment: Segment) -> bool:
    """Bit for bit: what is no number is no change."""
    return torch.equal(_bits(one, segment), _bits(other, segment))


def _given(bucket: Bucket, after: torch.Tensor, weights: Sequence[float], share: Share) -> Share:
    """Buffers with their weights, multiplied when they can be averaged."""
    assert share.tensor is not None
    for place, (segment, weight) in enumerate(zip(bucket.segments, weights, strict=True)):
        out = view_of(share.tensor, segment)
        if not weight:
            out.zero_()
            continue
        out.copy_(view_of(after, segment))
        if bucket.kind == "average" and weight != 1.0:
            out.mul_(weight)
        share.weights[place] = weight
    return share
