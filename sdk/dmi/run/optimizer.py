"""The script's optimizer: a real ``torch.optim.Optimizer``, so that schedulers take it, whose step puts the next version
of the parameters in place. The arithmetic is done bucket by bucket in ``dmi_tensor.shard``."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


def adopt(optimizer: Optimizer, install: Callable[[], None]) -> None:
    """From now on ``optimizer.step()`` calls ``install`` and ``zero_grad()`` does nothing; all else stays as it was.

    The object stays the same one, and an instance of its own class.
    """

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> None:
        install()

    def zero_grad(self: Optimizer, set_to_none: bool = True) -> None:
        """Each leaf starts without gradients anyway."""

    own = type(optimizer)
    optimizer.__class__ = type(
        own.__name__, (own,), {"step": step, "zero_grad": zero_grad, "__module__": own.__module__}
    )


def has_scheduler(optimizer: Optimizer) -> bool:
    """Has a learning rate scheduler been attached? torch's schedulers wrap the optimizer's step."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")
