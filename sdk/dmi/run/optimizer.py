"""The script's optimizer: a real ``torch.optim.Optimizer``, so that schedulers take it, whose step puts the next version
of the parameters in place. The arithmetic is done bucket by bucket in ``dmi_tensor.shard``."""

from collections.abc import Callable
from typing import Any, NoReturn

from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from dmi.errors import UsageError

_GROUPS = (
    "add_param_group after run.optimizer cannot be followed: give all parameters to the optimizer from the beginning, those that "
    "thaw later with requires_grad_(False) until then"
)
_HOOKS = "a step hook would not be called where the step is made, on parameter servers: write it before or after optimizer.step()"
_STATE = (
    "the optimizer's state is kept by the run, on parameter servers, and comes back by itself; run.export('model.pt') writes it "
    "into a file"
)


def adopt(optimizer: Optimizer, install: Callable[[], None], clear: Callable[[], None]) -> None:
    """From now on ``optimizer.step()`` calls ``install`` and ``zero_grad()`` calls ``clear``; what would be kept from the
    servers is refused. The object stays the same one, and an instance of its own class. Raises ``UsageError``."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or _global_hooks():
        raise UsageError(_HOOKS)

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> None:
        if closure is not None:
            raise UsageError(
                "optimizer.step(closure) cannot be: the closure would see one leaf; compute loss.backward() in the inner loop, "
                "and call optimizer.step() behind it"
            )
        if _global_hooks():
            raise UsageError(_HOOKS)
        self._opt_called = True  # type: ignore[attr-defined]  # so that schedulers know that a step came before theirs
        install()

    def zero_grad(self: Optimizer, set_to_none: bool = True) -> None:
        clear()

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # schedulers would put a function of their own there
    optimizer.__dict__.pop("step", None)  # a scheduler that was made before has done so
    own = type(optimizer)
    replaced = {
        "step": step,
        "zero_grad": zero_grad,
        "add_param_group": _refuse(_GROUPS),
        "register_step_pre_hook": _refuse(_HOOKS),
        "register_step_post_hook": _refuse(_HOOKS),
        "state_dict": _refuse(_STATE),
        "load_state_dict": _refuse(_STATE),
        "__module__": own.__module__,
    }
    optimizer.__class__ = type(own.__name__, (own,), replaced)


def _refuse(line: str) -> Callable[..., NoReturn]:
    def refused(*_: object, **__: object) -> NoReturn:
        raise UsageError(line)

    return refused


def _global_hooks() -> bool:
    """Are there hooks for every optimizer that are not ours?"""
    from_others = (
        hook
        for hooks in (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
        for hook in hooks.values()
        if not getattr(hook, "is_guard", False)
    )
    return any(True for _ in from_others)
