"""From an input as it was read to the tensors that a model takes, and from its outputs to a row. Functions of the user are loaded
here, too."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmi.errors import UsageError
from dmi.infer.config import Config, Preprocess
from dmi.infer.inputs import Bad, Given
from dmi_protocol.model import TensorInfo

Prepared = dict[str, Tensor] | Bad


def function(text: str) -> Callable[..., Any]:
    """``module:function`` or ``file.py:function``, of this directory or installed. Raises ``UsageError``."""
    module, _, name = text.partition(":")
    try:
        found = getattr(_module(module), name)
    except (ImportError, SyntaxError, OSError) as error:
        raise UsageError(f"{text} cannot be imported: {error}") from error
    except AttributeError as error:
        raise UsageError(f"{module} has no function {name!r}") from error
    if not callable(found):
        raise UsageError(f"{text} is no function")
    loaded: Callable[..., Any] = found
    return loaded


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path if path.exists() else path.name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Preparer:
    """Makes one input's tensors, without the batch dimension."""

    def __init__(self, config: Config, inputs: Sequence[TensorInfo]) -> None:
        self._config = config
        self._inputs = inputs
        self._own = function(config.preprocess) if isinstance(config.preprocess, str) else None
        self._pre = config.preprocess if isinstance(config.preprocess, Preprocess) else Preprocess()
        is_image = config.input.kind == "images"
        self._scale = self._pre.scale if self._pre.scale is not None else 1 / 255 if is_image else None

    def batch(self, batch: Sequence[Given]) -> list[Prepared]:
        """Of each input of a batch. Never raises: what cannot be used is a ``Bad``."""
        if not self._config.preprocess_batches:
            return [self._one(given, self._made) for given in batch]
        values = [given.value for given in batch if not isinstance(given.value, Bad)]
        try:
            made = iter(self._several(values))
        except Exception:  # noqa: BLE001 (some input's fault: each is asked for alone)
            return [
                self._one(given, lambda value: _by_name(self._several([value])[0], self._inputs)) for given in batch
            ]
        return [self._one(given, lambda _: _by_name(next(made), self._inputs)) for given in batch]

    def _several(self, values: list[Any]) -> list[Any]:
        assert self._own is not None
        made = list(self._own(values)) if values else []
        if len(made) != len(values):
            raise Bad(f"preprocess gave {len(made)} for {len(values)} inputs")
        return made

    def _one(self, given: Given, make: Callable[[Any], dict[str, Tensor]]) -> Prepared:
        if isinstance(given.value, Bad):
            return given.value
        try:
            return self._fitting(make(given.value))
        except Bad as error:
            return error
        except Exception as error:  # noqa: BLE001 (the user's function, and whatever numbers do)
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Bad(f"{'preprocess raised ' if self._own else ''}{type(error).__name__}: {line}"[:200])

    def _made(self, value: Any) -> dict[str, Tensor]:
        if self._own is not None:
            made = self._own(value)
            return _by_name(made, self._inputs)
        if self._config.input.kind == "images":
            return {self._inputs[0].name: self._image(value)}
        return _by_name(value, self._inputs, self._numbers)

    def _image(self, array: np.ndarray[Any, Any]) -> Tensor:
        """Channels first, scaled, normalised; in float32."""
        return self._numbers(torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous().float())

    def _numbers(self, tensor: Tensor) -> Tensor:
        if self._scale is not None:
            tensor = tensor.float() * self._scale
        for values, act in ((self._pre.mean, torch.sub), (self._pre.std, torch.div)):
            if values is not None:
                shape = (-1, *([1] * (tensor.dim() - 1)))
                tensor = act(tensor.float(), torch.tensor(values, dtype=torch.float32).reshape(shape))
        return tensor

    def _fitting(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As the model takes them: its dtypes, and its shapes where they are fixed."""
        found = {}
        for info in self._inputs:
            if info.name not in tensors:
                raise Bad(f"it has no {info.name!r}, which the model takes")
            tensor = tensors[info.name]
            want = info.shape[1:] if info.is_batched else info.shape
            if tensor.dim() != len(want) or any(w not in {None, h} for w, h in zip(want, tensor.shape, strict=True)):
                hint = "; set preprocess.resize" if self._config.input.kind == "images" else ""
                shown = tuple("*" if size is None else size for size in want)
                raise Bad(f"its shape is {tuple(tensor.shape)} and the model takes {shown}{hint}".replace("'", ""))
            found[info.name] = _cast(tensor, getattr(torch, info.dtype))
        return found


def _by_name(
    value: Any, inputs: Sequence[TensorInfo], change: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """Columns that are named as inputs are; or else all of them, one after another, as the one input there is."""
    if isinstance(value, Mapping) and all(info.name in value for info in inputs):
        return {info.name: change(_column(info.name, value[info.name])) for info in inputs}
    if len(inputs) > 1:
        raise Bad(f"the model takes {', '.join(info.name for info in inputs)}, and this input does not name them")
    if isinstance(value, Mapping):
        columns = [_column(name, column).reshape(-1) for name, column in value.items()]
        if not columns:
            raise Bad("it has no columns of numbers")
        value = torch.cat([column.to(torch.float64) for column in columns]) if len(columns) > 1 else columns[0]
    return {inputs[0].name: change(_tensor(value))}


def _column(name: str, value: Any) -> Tensor:
    try:
        return _tensor(value)
    except Bad as error:
        raise Bad(f"column {name!r}: {error}") from error


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.array(value)
        if array.dtype.kind not in "biuf":
            raise Bad("it is not made of numbers, or its rows differ in length")
        return torch.from_numpy(array)
    except (ValueError, TypeError) as error:
        raise Bad("it is not made of numbers, or its rows differ in length") from error


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    if tensor.is_floating_point() and not dtype.is_floating_point and not torch.equal(tensor, tensor.round()):
        raise Bad(f"it has fractions, and the model takes {str(dtype).removeprefix('torch.')}")
    return tensor.to(dtype)
