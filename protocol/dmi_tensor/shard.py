"""The arithmetic of one shard: its buckets at two versions, their optimizers, and what a checkpoint keeps of them.

A plain run is one shard that holds everything; a parameter server holds some buckets. Both call the same code, bucket
by bucket, so both get the same bits. Which call is due when is decided elsewhere (``dmi_protocol/training/shard.py``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from dmi_protocol.training.layout import Bucket, Definition, assign_buckets, lay_out
from dmi_tensor import optimizers
from dmi_tensor.buckets import aligned_empty, view_of
from dmi_tensor.dtypes import DTYPES
from dmi_tensor.tree_sum import Share, means

Norms = Sequence[tuple[int, float]]
"""(bucket, squared norm of its gradient), in bucket order, over all shards."""

Memory = Callable[[int, torch.dtype], torch.Tensor]
"""Makes a flat tensor of so many elements on a 64-byte boundary; a server lays it where its neighbours can read."""

_EPSILON = 1e-6
"""Keeps the clipping factor finite, as ``torch.nn.utils.clip_grad_norm_`` does."""


class _Held:
    """One bucket: the memory of two versions, and its optimizer."""

    def __init__(self, bucket: Bucket, optimizer: str, memory: Memory) -> None:
        self.bucket = bucket
        versions = 2 if bucket.kind in {"parameter", "average", "agree"} else 1
        self.memory = [memory(bucket.length, DTYPES[bucket.dtype]).zero_() for _ in range(versions)]
        self.views = [[view_of(memory, segment) for segment in bucket.segments] for memory in self.memory]
        self._slots: dict[int, int] = {}
        self.detail = b""
        self.parameters = [view.detach() for view in self.views[0]]
        self.name = optimizer
        self.optimizer: Optimizer | None = None

    def slot(self, version: int) -> int:
        """In which of its memories a version lies."""
        return self._slots.get(version, version % len(self.memory))

    def at(self, version: int) -> torch.Tensor:
        return self.memory[self.slot(version)]

    def advance(self, version: int, *, is_changed: bool) -> None:
        """``version + 1`` lies where ``version`` lies when it is the same, else where the one before that lay."""
        here = self.slot(version)
        there = (here + 1) % len(self.memory) if is_changed else here
        self._slots = {version - 1: self.slot(version - 1), version: here, version + 1: there}
        if is_changed:
            self.memory[there].copy_(self.memory[here])

    def resume(self, version: int, options: dict[str, Any], state: Sequence[Mapping[str, Any]]) -> None:
        """An optimizer that has made ``version``; ``state`` is what it kept of each segment."""
        for parameter, view in zip(self.parameters, self.views[self.slot(version)], strict=True):
            parameter.data = view
        self.optimizer = optimizers.make(self.name, self.parameters, options)
        for parameter, values in zip(self.parameters, state, strict=True):
            if values:
                self.optimizer.state[parameter] = {
                    name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()
                }

    def step(self, version: int, gradient: Sequence[torch.Tensor | None], options: dict[str, Any]) -> None:
        """Make ``version + 1`` of ``version`` where the version before it lay; without any gradient it is the same."""
        is_changed = any(grad is not None for grad in gradient)
        self.advance(version, is_changed=is_changed)
        if not is_changed:
            return
        for parameter, view, grad in zip(self.parameters, self.views[self.slot(version + 1)], gradient, strict=True):
            parameter.data = view
            parameter.grad = grad
        if self.optimizer is None:
            self.optimizer = optimizers.make(self.name, self.parameters, options)
        optimizers.step(self.optimizer, options)
        for parameter in self.parameters:
            parameter.grad = None


class Shard:
    """The buckets of ``definition`` that fall to ``shard`` of ``shards``. Not safe to call from two threads."""

    def __init__(self, definition: Definition, shard: int = 0, shards: int = 1, memory: Memory = aligned_empty) -> None:
        self.definition = definition
        self.layout = lay_out(definition)
        self.owners = assign_buckets(self.layout, shards)
        mine = [bucket for bucket in self.layout.buckets if self.owners[bucket.index] == shard]
        self.buckets = tuple(bucket.index for bucket in mine if bucket.index < self.layout.live)
        self.frozen = tuple(bucket.index for bucket in mine if bucket.index >= self.layout.live)
        self.hyper = b""
        self._held = {bucket.index: _Held(bucket, definition.optimizer, memory) for bucket in mine}

    def restore(
        self, step: int, bucket: int, values: torch.Tensor, hyper: bytes, state: Sequence[Mapping[str, Any]]
    ) -> None:
        """Version ``step`` of a bucket, and what ``state`` gave of its optimizer then; ``hyper`` is that of the step before."""
        held = self._held[bucket]
        self.read(bucket, step).copy_(values)
        self.hyper = hyper
        if any(state):
            held.resume(step, optimizers.groups_of(hyper)[held.bucket.group], state)

    def initialize(self, bucket: int, values: torch.Tensor) -> None:
        """Version 0 of a bucket, flat and of its dtype; ``ValueError`` when it is not."""
        self.read(bucket, 0).copy_(values)

    def read(self, bucket: int, version: int) -> torch.Tensor:
        """A bucket's memory at ``version``, flat; it is written again when ``version + 2`` is made."""
        return self._held[bucket].at(version)

    def is_as_before(self, bucket: int, version: int) -> bool:
        """Is ``version``, which was made here, the same as the one before it?"""
        held = self._held[bucket]
        return len(held.memory) > 1 and held.slot(version) == held.slot(version - 1)

    def detail(self, bucket: int) -> bytes:
        """What goes with a bucket that is shown: in the metrics bucket the sums of the last step, else nothing."""
        return self._held[bucket].detail

    def set_detail(self, bucket: int, detail: bytes) -> None:
        """Make ``detail`` what goes with a bucket."""
        self._held[bucket].detail = detail

    def square(self, bucket: int, root: Share | None) -> float:
        """The squared 2-norm of a gradient bucket's root; 0.0 for other buckets and absent roots.

        The norm is taken in the sum's dtype over the whole bucket (padding is zero) and squared in float64.
        """
        if self.layout.buckets[bucket].kind != "parameter" or root is None or root.tensor is None:
            return 0.0
        return float(torch.linalg.vector_norm(root.tensor)) ** 2

    def apply(self, step: int, bucket: int, root: Share | None, hyper: bytes, norms: Norms) -> None:
        """Make version ``step + 1`` of ``bucket`` from version ``step`` and the sum over all leaves.

        ``root`` is None when no leaf had anything for this bucket; its tensor may be overwritten. ``norms`` are needed
        when the definition clips: the gradient is scaled by ``min(1, clip_norm / (norm + 1e-6))``, the norm summed in
        bucket order (Pascanu et al. 2013; the formula is ``torch.nn.utils.clip_grad_norm_``'s).
        """
        held = self._held[bucket]
        self.hyper = hyper
        match held.bucket.kind:
            case "parameter":
                options = optimizers.groups_of(hyper)[held.bucket.group]
                held.step(step, self._gradient(held, root, norms), options)
            case "metrics":
                held.detail = b"" if root is None else root.detail
            case _:
                held.advance(step, is_changed=root is not None and root.tensor is not None)
                self._average(held, root, step + 1)

    def _gradient(self, held: _Held, root: Share | None, norms: Norms) -> list[torch.Tensor | None]:
        if root is None or root.tensor is None:
            return [None] * len(held.bucket.segments)
        total = root.tensor
        if self.definition.clip_norm is not None:
            norm = sum(square for _, square in sorted(norms)) ** 0.5
            total.mul_(min(1.0, self.definition.clip_norm / (norm + _EPSILON)))
        total = total.to(DTYPES[held.bucket.dtype])
        return [
            view_of(total, segment) if weight else None
            for segment, weight in zip(held.bucket.segments, root.weights, strict=True)
        ]

    def _average(self, held: _Held, root: Share | None, version: int) -> None:
        """Buffers: the mean over the leaves that changed it, weighted by their samples; untouched ones stay."""
        if root is None or root.tensor is None:
            return
        views = held.views[held.slot(version)]
        for segment, weight, view in zip(held.bucket.segments, root.weights, views, strict=True):
            if weight:
                value = view_of(root.tensor, segment)
                view.copy_(value if held.bucket.kind == "agree" or weight == 1.0 else value / weight)

    def metrics(self, root: Share | None) -> dict[str, float]:
        """The means that a step's metrics root stands for."""
        return means(root)

    def state(self, bucket: int) -> list[dict[str, Any]]:
        """The optimizer's state of each segment of ``bucket``; empty before its first step."""
        held = self._held[bucket]
        if held.optimizer is None:
            return [{} for _ in held.bucket.segments]
        return [dict(held.optimizer.state.get(parameter, {})) for parameter in held.parameters]
