"""torch's own optimizers, one instance for each bucket, over views of its tensors: the same kernels everywhere.

Fused kernels are used wherever torch has them on the CPU; foreach is always off, because it groups tensors by what else
is there. Both change bits, so neither is the script's choice.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import msgpack
import torch
from torch.optim import Optimizer

from dmi_protocol.codec import unpack
from dmi_protocol.errors import RemoteProtocolError

ELEMENTWISE = frozenset(
    {"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}
)
"""Optimizers that look at each element alone: large tensors may be cut."""
WHOLE = frozenset({"Adafactor", "Muon"})
"""Optimizers that look at whole tensors."""
REFUSED = {
    "LBFGS": "it evaluates the loss several times a step, so a step is no sum over leaves; use SGD, Adam or Muon",
    "SparseAdam": "gradients are dense in DMI; use Adam",
}
_OURS = frozenset({"foreach", "fused", "params", "capturable", "differentiable"})
"""Options that choose kernels. They are set here."""
_PROBE = (3,)
"""The shape of a tensor that stands for any other."""


class OptimizerRefusedError(Exception):
    """This optimizer, or one of its options, cannot keep the promise. The text is one line that says why."""


def check_optimizer(optimizer: Optimizer) -> str:
    """The name of ``optimizer``'s class, which every server can make too. Raises ``OptimizerRefusedError``."""
    kind = type(optimizer)
    name = kind.__name__
    if name in REFUSED:
        raise OptimizerRefusedError(f"{name} is refused: {REFUSED[name]}")
    if getattr(torch.optim, name, None) is not kind or name not in ELEMENTWISE | WHOLE:
        raise OptimizerRefusedError(f"{name} is refused: parameter servers know the classes of torch.optim only")
    for group in optimizer.param_groups:
        if group.get("differentiable") or group.get("capturable"):
            raise OptimizerRefusedError(f"{name} is refused with differentiable or capturable set; leave them out")
        for option, value in group.items():
            if isinstance(value, torch.Tensor):
                raise OptimizerRefusedError(f"{name}: {option} must be a number, not a tensor; use float({option})")
    return name


def hyperparameters(optimizer: Optimizer) -> bytes:
    """Each group's options as the optimizer has them now, for one step."""
    groups = [
        {name: value for name, value in sorted(group.items()) if name not in _OURS and _travels(value)}
        for group in optimizer.param_groups
    ]
    packed: bytes = msgpack.packb(groups)
    return packed


def _travels(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_travels(item) for item in value)
    return value is None or isinstance(value, int | float | str)


def groups_of(hyper: bytes) -> list[dict[str, Any]]:
    """The groups' options again; lists become tuples, as torch has them. Raises ``RemoteProtocolError``."""
    groups = unpack(hyper)
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise RemoteProtocolError("hyperparameters are a list of options for each group")
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in group.items()} for group in groups]


@cache
def _accepted(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(torch.optim, name)).parameters)


def make(name: str, parameters: Sequence[torch.Tensor], options: Mapping[str, Any]) -> Optimizer:
    """An optimizer of torch's class ``name`` over ``parameters``, fused where that is possible."""
    kind = getattr(torch.optim, name)
    accepted = _accepted(name)
    chosen = {option: value for option, value in options.items() if option in accepted - _OURS}
    if "foreach" in accepted:
        chosen["foreach"] = False
    if "fused" in accepted:
        try:
            made: Optimizer = kind(list(parameters), **chosen | {"fused": True, "foreach": None})
        except (RuntimeError, ValueError):  # this combination of options has no fused kernel: a function of the options
            pass
        else:
            return made
    plain: Optimizer = kind(list(parameters), **chosen)
    return plain


class Kept(NamedTuple):
    """What an optimizer keeps under one name of its state: a tensor of this dtype and shape, or a number."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]


@lru_cache(maxsize=1_024)
def kept_of(name: str, shape: tuple[int, ...], dtype: torch.dtype, hyper: bytes, group: int) -> Mapping[str, Kept]:
    """What torch's ``name`` with these hyperparameters keeps of a tensor of this shape and dtype, by name: found by a step on
    zeros. Raises ``RemoteProtocolError`` for hyperparameters that it does not take."""
    groups = groups_of(hyper)
    if not 0 <= group < len(groups):
        raise RemoteProtocolError(f"hyperparameters of {len(groups)} groups where there is a group {group}")
    is_whole = name in WHOLE  # of the others each element is like any other
    parameter = torch.zeros(shape if is_whole else _PROBE, dtype=dtype)
    parameter.grad = torch.zeros_like(parameter)
    try:
        made = make(name, [parameter], groups[group])
        step(made, groups[group])
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise RemoteProtocolError(f"hyperparameters that {name} does not take: {error}") from error
    found = {key: _kept(value) for key, value in made.state[parameter].items() if value is not None}
    if is_whole:
        return found
    return {key: kept._replace(shape=shape) if kept.shape == _PROBE else kept for key, kept in found.items()}


def _kept(value: object) -> Kept:
    return Kept(value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else Kept(None, ())


def tensors_kept(optimizer: Optimizer) -> int:
    """How many tensors of a parameter's own size an optimizer keeps for it, about: the most of its groups."""
    name, hyper = type(optimizer).__name__, hyperparameters(optimizer)
    shape = (4, 8)  # whatever looks at whole tensors takes matrices
    counts = []
    for group in range(len(optimizer.param_groups)):
        kept = kept_of(name, shape, torch.float32, hyper, group).values()
        counts.append(sum(tensor.shape == shape for tensor in kept))
    return max(counts, default=0)


def check_state(values: Mapping[str, Any], kept: Mapping[str, Kept]) -> None:
    """Raise ``RemoteProtocolError`` unless ``values`` are what an optimizer keeps, or nothing: it never touched the tensor. A
    fused kernel writes beyond the end of a state that is too small. What it kept under other hyperparameters, and does not
    look at now, may be there too."""
    if values and not kept.keys() <= values.keys():
        raise RemoteProtocolError(f"the state of an optimizer has {sorted(values)} where it keeps {sorted(kept)}")
    for key in values.keys() & kept.keys():
        if (found := _kept(values[key])) != kept[key]:
            raise RemoteProtocolError(f"{key} of an optimizer's state is {found} where it is {kept[key]}")


def warm_up() -> None:
    """torch imports much when the first optimizer is made (seconds, on a busy host): do it before somebody waits."""
    parameter = torch.zeros(1)
    parameter.grad = torch.zeros(1)
    step(make("SGD", [parameter], {"lr": 0.0}), {})


def step(optimizer: Optimizer, options: Mapping[str, Any]) -> None:
    """One step with these options; parameters without a gradient are skipped, as torch does."""
    optimizer.param_groups[0].update({k: v for k, v in options.items() if k in optimizer.param_groups[0]})
    optimizer.step()
