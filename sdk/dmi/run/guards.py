"""What would silently act on one leaf, or beside the run, is refused with the replacement in one line.

torch is changed once in a process, and asks the run of now: outside of its steps everything is as it was.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dmi.errors import UsageError
from dmi_tensor.optimizers import is_ours

_REFUSALS = {
    "norm": "clip_grad_norm_ would clip each leaf alone; write run.optimizer(optimizer, clip_norm=...) instead",
    "value": "clip_grad_value_ would clip each leaf alone; write run.optimizer(optimizer, clip_norm=...) instead",
    "scaler": "GradScaler would act on each leaf alone; train in bfloat16 or float32, which need none, or pass enabled=False",
}


class Watched(Protocol):
    """The run, as the guards see it."""

    @property
    def is_in_step(self) -> bool:
        """Between the first leaf of a step and ``optimizer.step()``?"""
        ...

    def owns(self, tensor: torch.Tensor) -> bool:
        """Is it a parameter of the run, or the gradient of one?"""
        ...

    def check_other_optimizer(self, optimizer: Optimizer) -> None:
        """Another optimizer than the run's is about to make a step. Raises ``UsageError`` where it may not."""
        ...


_latest: list[Watched] = []
_stepped: "weakref.WeakValueDictionary[int, LRScheduler]" = weakref.WeakValueDictionary()
"""Schedulers that have changed their optimizer, by their identity: they may compare as they like."""


def watch(run: Watched) -> None:
    """``run`` is the one of now."""
    _install()
    _latest[:] = [run]


def schedulers_of(optimizer: Optimizer) -> Iterator[LRScheduler]:
    """Those that have changed it, since this process has a run."""
    return (scheduler for scheduler in list(_stepped.values()) if getattr(scheduler, "optimizer", None) is optimizer)


def _refused_in_step(original: Callable[..., Any], line: str) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if _latest and _latest[0].is_in_step:
            raise UsageError(line)
        return original(*args, **kwargs)

    return guarded


def _refused_when_enabled(original: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> Any:
        if self.is_enabled() and _latest and _latest[0].is_in_step:
            raise UsageError(_REFUSALS["scaler"])
        return original(self, *args, **kwargs)

    return guarded


def _noted(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: LRScheduler, *args: Any, **kwargs: Any) -> Any:
        _stepped[id(self)] = self
        return original(self, *args, **kwargs)

    step.__name__, step.__doc__ = "step", original.__doc__
    return step


_DATA = torch._C.TensorBase.data


def _seen(tensor: torch.Tensor) -> torch.Tensor:
    """What ``tensor.data`` gives: the same memory, but whoever writes it writes unseen. ``detach`` gives the same, and counts."""
    if _latest and _latest[0].owns(tensor):
        return tensor.detach()
    return _DATA.__get__(tensor)  # type: ignore[no-any-return, attr-defined]


def _put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    _DATA.__set__(tensor, value)  # type: ignore[attr-defined]


def _before_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if _latest and not is_ours(optimizer):
        _latest[0].check_other_optimizer(optimizer)


_before_step.is_guard = True  # type: ignore[attr-defined]
_installed: list[bool] = []


def _install() -> None:
    """Internals are replaced, so that names imported earlier are caught too; what clips by value is found at the leaf's end,
    where it was imported by its name."""
    if _installed:
        return
    _installed.append(True)
    for name in ("_get_total_norm", "_clip_grads_with_norm_"):
        setattr(clip_grad, name, _refused_in_step(getattr(clip_grad, name), _REFUSALS["norm"]))
    value = _refused_in_step(clip_grad.clip_grad_value_, _REFUSALS["value"])
    for owner in (clip_grad, torch.nn.utils):
        setattr(owner, "clip_grad_value_", value)  # noqa: B010 (one form for all three)
    for name in ("scale", "step", "unscale_"):
        setattr(torch.amp.GradScaler, name, _refused_when_enabled(getattr(torch.amp.GradScaler, name)))
    for kind in vars(lr_scheduler).values():
        if isinstance(kind, type) and "step" in vars(kind):
            kind.step = _noted(kind.step)  # type: ignore[attr-defined]
    torch.Tensor.data = property(_seen, _put, doc="Its values, without its history.")  # type: ignore[assignment]
    register_optimizer_step_pre_hook(_before_step)
