"""What would silently act on one leaf instead of the whole step is refused, with the replacement in one line."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import clip_grad

from dmi.errors import UsageError

_REFUSALS = {
    "norm": "clip_grad_norm_ would clip each leaf alone; write run.optimizer(optimizer, clip_norm=...) instead",
    "value": "clip_grad_value_ would clip each leaf alone; write run.optimizer(optimizer, clip_norm=...) instead",
    "scaler": "GradScaler would act on each leaf alone; train in bfloat16 or float32, which need none",
}
_installed: list[bool] = []


def _refuse(line: str) -> Callable[..., Any]:
    def refused(*_: object, **__: object) -> Any:
        raise UsageError(line)

    return refused


def install() -> None:
    """Refuse from now on, in this process. Internals are replaced, so that names imported earlier are caught too."""
    if _installed:
        return
    _installed.append(True)
    for name in ("_get_total_norm", "_clip_grads_with_norm_"):
        setattr(clip_grad, name, _refuse(_REFUSALS["norm"]))
    for owner in (clip_grad, torch.nn.utils):
        setattr(owner, "clip_grad_value_", _refuse(_REFUSALS["value"]))  # noqa: B010 (one form for all three)
    for name in ("scale", "step", "unscale_"):
        setattr(torch.amp.GradScaler, name, _refuse(_REFUSALS["scaler"]))
