"""What a script has beside what it gave to the run: it would differ from worker to worker, or be lost with one, and is refused
with what to do instead."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dmi.errors import UsageError
from dmi.run import guards


def check_optimizer(optimizer: Optimizer, module: nn.Module | None, kept: Sequence[Any], *, in_step: bool) -> None:
    """Another optimizer than the run's is about to make a step, inside one of ``run``'s loops. One that is kept may, between the
    steps. Raises ``UsageError``."""
    name = type(optimizer).__name__
    ours = {id(p) for p in (module.parameters() if module is not None else ())}
    if any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            f"another optimizer ({name}) changes parameters of the model, which only run.optimizer's may: use one optimizer with "
            "parameter groups"
        )
    if in_step or not any(thing is optimizer for thing in kept):
        raise UsageError(
            f"another optimizer ({name}) trains a module beside the model, which would differ from worker to worker: make it a "
            "part of the model (nn.ModuleDict) and of run.optimizer's optimizer, or give module and optimizer to run.keep(...) "
            "and train it between the steps"
        )


def check_schedulers(optimizer: Optimizer, kept: Sequence[Any]) -> None:
    """Raise ``UsageError`` when a scheduler changes the optimizer and is none of those that are kept, nor a part of one."""
    known = list(kept)
    for thing in known:
        known += getattr(thing, "_schedulers", ())
    for scheduler in guards.schedulers_of(optimizer):
        if not any(scheduler is each for each in known):
            raise UsageError(
                f"a scheduler that the run does not know, {type(scheduler).__name__}, changes the optimizer; wrap it in "
                "run.scheduler(...)"
            )
