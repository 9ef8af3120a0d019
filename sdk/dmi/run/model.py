"""The script's module, its tensors moved into buckets, and what one leaf makes of them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from dmi.errors import UsageError
from dmi.run.buffers import ModuleBuffers
from dmi.run.gradients import Gradients
from dmi_protocol.training.layout import Bucket, BufferSpec, Definition, ParameterSpec, lay_out
from dmi_tensor.buckets import Buckets, word_sum
from dmi_tensor.dtypes import NAMES
from dmi_tensor.optimizers import WHOLE, check_optimizer
from dmi_tensor.tree_sum import Share


def define(module: nn.Module, optimizer: Optimizer, leaves: int, clip_norm: float | None) -> Definition:
    """What servers must know of this module and optimizer. Raises ``UsageError``; see also ``check_optimizer``."""
    name = check_optimizer(optimizer)
    groups = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    names = {id(p): n for n, p in module.named_parameters()}
    strangers = sum(id(p) not in names for group in optimizer.param_groups for p in group["params"])
    if strangers:
        raise UsageError(
            f"{strangers} parameters of the optimizer are not the model's; build it after run.model, from it"
        )
    parameters = []
    for n, p in module.named_parameters():
        if not p.is_floating_point() or p.is_sparse or p.device.type != "cpu":
            raise UsageError(f"parameter {n} is {p.dtype} on {p.device}: parameters are dense floats on the CPU")
        parameters.append(ParameterSpec(n, tuple(p.shape), NAMES[p.dtype], groups.get(id(p), -1)))
    order = tuple(tuple(names[id(p)] for p in group["params"]) for group in optimizer.param_groups)
    return Definition(
        tuple(parameters), tuple(_buffers(module)), order, name, name in WHOLE, leaves, clip_norm
    )  # fmt: skip


def _buffers(module: nn.Module) -> list[BufferSpec]:
    persistent = set(module.state_dict())
    return [
        BufferSpec(name, tuple(buffer.shape), NAMES[buffer.dtype], name in persistent)
        for name, buffer in module.named_buffers()
        if buffer.numel()
    ]


class Model:
    """A module whose parameters and buffers are views of buckets."""

    def __init__(self, module: nn.Module, definition: Definition) -> None:
        """Move the module's tensors; its ``Parameter`` objects stay the same ones."""
        self.definition = definition
        self.layout = lay_out(definition)
        self.buckets = Buckets(self.layout)
        views = self.buckets.tensors(definition.shapes)
        self._tensors: dict[str, torch.Tensor] = {
            name: tensor
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
            if name in views
        }  # fmt: skip
        for name, view in views.items():
            view.copy_(self._tensors[name].detach())
            self._tensors[name].data = view
        self.gradients = Gradients({p.name: self._tensors[p.name] for p in definition.parameters if p.group >= 0})
        self.buffers = ModuleBuffers(module, self.buckets)
        self._marks: list[tuple[torch.Tensor, int, int, str]] = []
        self._sums: dict[int, int] = {}
        self._ids = {id(self._tensors[spec.name]) for spec in definition.parameters}
        self.mark()

    def mark(self) -> None:
        """A version was put in place: note where the parameters lie and how often they were written, to find out who else writes
        them."""
        self._marks = [
            (t, t.data_ptr(), t._version, name)
            for name in (spec.name for spec in self.definition.parameters)
            for t in (self._tensors[name],)
        ]
        self._sums = self._summed()
        self.buffers.installed()

    def check_untouched(self) -> None:
        """Raise ``UsageError`` when somebody but the run wrote or moved a parameter."""
        for tensor, place, version, name in self._marks:
            if tensor.data_ptr() != place:
                raise UsageError(f"parameter {name} was moved (model.to, .half, .data = ...); do that before run.model")
            if tensor._version != version:
                raise UsageError(
                    f"parameter {name} was written in place, by the script or by another optimizer; in a run only "
                    "optimizer.step() of run.optimizer's optimizer changes parameters"
                )

    def check_same(self) -> None:
        """Raise ``UsageError`` when the parameters are not those of the version that was put in place: NumPy, or code that was
        given a pointer, writes without torch noticing."""
        self.check_untouched()
        for index, total in self._summed().items():
            if total != self._sums[index]:
                names = [segment.name for segment in self.layout.buckets[index].segments]
                told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                raise UsageError(
                    f"a parameter was written in place, past torch (.numpy(), a pointer); it is among {told}; in a run only "
                    "optimizer.step() of run.optimizer's optimizer changes parameters"
                )

    def _summed(self) -> dict[int, int]:
        """Of each bucket of parameters; see ``word_sum``."""
        kinds = {"parameter", "frozen"}
        return {b.index: word_sum(self.buckets.bucket(b.index)) for b in self.layout.buckets if b.kind in kinds}

    def owns(self, tensor: torch.Tensor) -> bool:
        """Is it a parameter, or what ``backward`` has just given to one?"""
        return id(tensor) in self._ids or self.gradients.owns(tensor)

    def begin(self) -> bytes:
        """A step begins; see ``ModuleBuffers.begin``. Raises ``UsageError``."""
        self.check_untouched()
        self.gradients.watch()
        return self.buffers.begin()

    def reset(self) -> None:
        """Before a leaf, and after the last one: buffers at the step's version, no gradients."""
        self.buffers.reset()
        self.gradients.clear()

    def collect(self, weight: float, take: Callable[[int], Share], *, is_first: bool) -> dict[int, Share]:
        """What the leaf that was just computed gives to each bucket, times ``weight``. Raises ``UsageError``."""
        self.check_untouched()
        self.gradients.check()
        shares: dict[int, Share] = {}
        for bucket in self.layout.buckets:
            if bucket.kind == "parameter":
                grads = [self._tensors[segment.name].grad for segment in bucket.segments]
                if any(grad is not None for grad in grads):
                    shares[bucket.index] = self._gradients(bucket, grads, weight, take(bucket.index))
        return shares | self.buffers.collect(weight, take, is_first=is_first)

    def written(self, take: Callable[[int], Share]) -> dict[int, Share]:
        """What the script has written since the version was put in place, and nothing else. Raises ``UsageError`` when what was
        computed since the step began has changed a buffer, or a parameter."""
        self.check_untouched()
        self.buffers.check_unchanged()
        return self.buffers.collect(0.0, take, is_first=True)

    @staticmethod
    def _gradients(bucket: Bucket, grads: Sequence[torch.Tensor | None], weight: float, share: Share) -> Share:
        assert share.tensor is not None
        for place, (segment, grad) in enumerate(zip(bucket.segments, grads, strict=True)):
            out = share.tensor[segment.offset : segment.offset + segment.length]
            if grad is None:
                out.zero_()
                continue
            if grad.layout != torch.strided:
                raise UsageError(f"the gradient of {segment.name} is sparse; build its layer with sparse=False")
            piece = grad.reshape(-1)[segment.start : segment.start + segment.length]
            if piece.dtype == out.dtype:
                torch.mul(piece, weight, out=out)
            else:
                out.copy_(piece).mul_(weight)
            share.weights[place] = weight
        return share

    def named(self) -> Mapping[str, torch.Tensor]:
        """Every parameter and buffer under its first name."""
        return self._tensors
