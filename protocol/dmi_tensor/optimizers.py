"""torch's own optimizers, one instance for each bucket, over views of its tensors: the same kernels everywhere.

Fused kernels are used wherever torch has them on the CPU; foreach is always off, because it groups tensors by what else
is there. Both change bits, so neither is the script's choice.
"""

import inspect
import math
import numbers
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import msgpack
import numpy as np
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
_made: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()
"""By ``make``."""
_INTEGERS = range(-(1 << 63), 1 << 63)
"""What servers take for an integer."""
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
    hyperparameters(optimizer)
    return name


def hyperparameters(optimizer: Optimizer) -> bytes:
    """Each group's options as the optimizer has them now, for one step. Raises ``OptimizerRefusedError`` for one that is no
    number. What else a script has noted in a group, and cannot travel, is the script's own."""
    groups = [dict(_options(optimizer, group, place)) for place, group in enumerate(optimizer.param_groups)]
    packed: bytes = msgpack.packb(groups)
    return packed


def _options(optimizer: Optimizer, group: Mapping[str, Any], place: int) -> Iterator[tuple[str, Any]]:
    for name in sorted(group.keys() - _OURS):
        try:
            yield name, option(name, group[name], place)
        except OptimizerRefusedError:
            if name in optimizer.defaults:
                raise


def put_back(optimizer: Optimizer, hyper: bytes) -> None:
    """Make the groups' options what ``hyperparameters`` gave; a tensor that is one stays the same tensor."""
    for group, options in zip(optimizer.param_groups, groups_of(hyper), strict=True):
        for name, value in options.items():
            if isinstance(group.get(name), torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


def option(name: str, value: object, group: int) -> Any:
    """A hyperparameter as the number of Python's that it is, whatever its type, a 0-d tensor among them: None, a bool, an int, a
    float, text, or a tuple of these. Raises ``OptimizerRefusedError`` for what is no such thing exactly."""
    if isinstance(value, list | tuple):
        return tuple(option(name, item, group) for item in value)
    if (isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1) or isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int) and value in _INTEGERS:
        return bool(value) if isinstance(value, bool) else int(value)
    if isinstance(value, numbers.Real) and (float(value) == value or value != value):
        return float(value)
    raise OptimizerRefusedError(
        f"{name} of parameter group {group} is {_kind(value)}, which is no number that travels: set it to a float"
    )


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return (
        f"{value} ({type(value).__name__})"[:80] if isinstance(value, numbers.Number) else f"a {type(value).__name__}"
    )


def groups_of(hyper: bytes) -> list[dict[str, Any]]:
    """The groups' options again; lists become tuples, as torch has them. Raises ``RemoteProtocolError``."""
    groups = unpack(hyper)
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise RemoteProtocolError("hyperparameters are a list of options for each group")
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in group.items()} for group in groups]


@cache
def _accepted(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(torch.optim, name)).parameters)


def is_ours(optimizer: Optimizer) -> bool:
    """Was it made here, and not by a script?"""
    return optimizer in _made


def make(name: str, parameters: Sequence[torch.Tensor], options: Mapping[str, Any]) -> Optimizer:
    """An optimizer of torch's class ``name`` over ``parameters``, fused where that is possible."""
    made = _make(name, parameters, options)
    _made.add(made)
    return made


def _make(name: str, parameters: Sequence[torch.Tensor], options: Mapping[str, Any]) -> Optimizer:
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


def warm_up(threads: int) -> None:
    """Compute on so many threads from now on: torch's default is the number of processors, on which a reduction's bits and the
    time of whoever computes beside depend. And torch imports much when the first optimizer is made (seconds, on a busy host): do
    it before somebody waits."""
    torch.set_num_threads(threads)
    parameter = torch.zeros(1)
    parameter.grad = torch.zeros(1)
    step(make("SGD", [parameter], {"lr": 0.0}), {})


def step(optimizer: Optimizer, options: Mapping[str, Any]) -> None:
    """One step with these options; parameters without a gradient are skipped, as torch does."""
    optimizer.param_groups[0].update({k: v for k, v in options.items() if k in optimizer.param_groups[0]})
    later = _without_momentum(optimizer)
    optimizer.step()
    if later:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = later.get(parameter)
        optimizer.step()


def _without_momentum(optimizer: Optimizer) -> dict[torch.Tensor, torch.Tensor]:
    """torch's fused SGD takes tensors that all have a momentum, or none: takes the gradients of those away that thawed, and have
    none yet, where others have. Gives them."""
    if not isinstance(optimizer, torch.optim.SGD) or not optimizer.param_groups[0]["momentum"]:
        return {}
    moving = [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]
    fresh = {p: p.grad for p in moving if optimizer.state.get(p, {}).get("momentum_buffer") is None}
    if not 0 < len(fresh) < len(moving):
        return {}
    for parameter in fresh:
        parameter.grad = None
    return fresh
