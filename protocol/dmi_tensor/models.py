"""Models that only compute: loading a version, finding out what goes in and comes out, and computing a batch.

A model maps named tensors to named tensors. Every input and output that is *batched* has the inputs along its first
dimension. A module that returns one tensor has the output ``output_0``, a tuple or list ``output_0``, ``output_1`` and so on,
a dict its own keys; inside one another they are joined by dots (``boxes.0``). None is left out.
"""

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dmi_protocol.model import Format, ModelContent, TensorInfo
from dmi_tensor import archives

_TRIALS = (2, 3)
"""Batches of these sizes are tried: what follows them is the batch dimension."""
_SIDES = (224, 32, 28, 64, 128, 256, 299, 8)
"""Heights and widths of images that are tried where nobody says, the commonest first."""
_LENGTHS = (512, 1024, 16_000, 128, 64)
_TOKENS = (16, 128)


class ModelError(Exception):
    """This is no model that can be used. The text is one line that says why."""


class RandomModelError(ModelError):
    """Its answers are a matter of chance."""


class Loaded:
    """A version in memory, in evaluation mode. Raises ``ModelError`` from ``load`` only; ``run`` raises what the module does."""

    def __init__(self, module: Callable[..., Any], names: Sequence[str]) -> None:
        self.module = module
        self.names = tuple(names)
        """Of the inputs, in order."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch; without gradients."""
        with torch.inference_mode():
            return dict(named(self.module(*(inputs[name] for name in self.names))))


def load(form: Format, files: Mapping[str, Path], factory: str = "", device: str = "cpu") -> Loaded:
    """``files`` gives the path of each file of the version by its name: ``model``, or ``weights`` and ``code``."""
    if form == "torchscript":
        return _torchscript(files["model"], device)
    if form == "exported":
        return _exported(files["model"], device)
    module = make(factory, files.get("code"))
    if "weights" in files:
        _fill(module, files["weights"], factory)
    return Loaded(module.to(device).eval(), _parameters_of(module))


def _torchscript(path: Path, device: str) -> Loaded:
    module = _script(path, device)
    arguments = module.forward.schema.arguments[1:]
    odd = [a.name for a in arguments if str(a.type) != "Tensor" and not a.has_default_value()]
    if odd:
        raise ModelError(f"its input {odd[0]!r} is no tensor; wrap the module in one that takes tensors only")
    names = [argument.name for argument in arguments if str(argument.type) == "Tensor"]
    return Loaded(module.eval(), names)


def _script(path: Path, device: str = "cpu") -> Any:
    try:
        archives.check_script(path)
        with (
            warnings.catch_warnings()
        ):  # torch would rather have exported programs; scripts are read for as long as it reads them
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device)
    except archives.UnsafeModelError as error:
        raise ModelError(f"{path.name} is refused: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path.name} is damaged, or of another torch: {line_of(error)}") from error


def _exported(path: Path, device: str) -> Loaded:
    program = program_of(path)
    module = program.module()
    if device != "cpu":
        module = module.to(device)
    # Its hooks look whether the arguments are nested as those that it was exported with, which tensors in order always are;
    # what it demands of their sizes is in its code. A small model is twice as fast without them.
    return Loaded(module.forward, [str(name) for name in program.graph_signature.user_inputs])


def program_of(path: Path) -> Any:
    """An exported program from a file of any name, which is looked at first: nothing of it is run but the operations of a model.
    Raises ``ModelError``."""
    try:
        archives.check(path)
        with (
            path.open("rb") as file,
            archives.tensors_only(),
        ):  # a blob's name has no suffix, on which torch insists for paths
            return torch.export.load(file)
    except archives.UnsafeModelError as error:
        raise ModelError(f"{path.name} is refused: {error}") from error
    except Exception as error:  # whatever a damaged file makes torch raise
        raise ModelError(f"{path.name} is damaged, or of another torch: {line_of(error)}") from error


def make(factory: str, code: Path | None) -> nn.Module:
    """What ``module:function`` returns; the module is the file ``code`` where it travelled."""
    name, _, function = factory.partition(":")
    try:
        module = _import(name, code)
        made = getattr(module, function)()
    except (ImportError, SyntaxError) as error:
        raise ModelError(f"{name} cannot be imported: {line_of(error)}") from error
    except AttributeError as error:
        raise ModelError(f"{name} has no function {function!r}: {line_of(error)}") from error
    except Exception as error:  # the user's code
        raise ModelError(f"{factory} raised {type(error).__name__}: {line_of(error)}") from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"{factory} returns a {type(made).__name__}; it must return a torch.nn.Module")
    return made


def _import(name: str, code: Path | None) -> ModuleType:
    if code is None:
        return importlib.import_module(name)
    loader = SourceFileLoader("dmi_model_code", str(code))  # a blob's name has no suffix by which Python would know it
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    loader.exec_module(module)
    return module


def _fill(module: nn.Module, weights: Path, factory: str) -> None:
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights.name} is no whole safetensors file: {line_of(error)}") from error
    own = module.state_dict()
    tied = _tied(own)
    state |= {name: state[first] for name, first in tied.items() if name not in state and first in state}
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [n for n in sorted(own.keys() & state.keys()) if own[n].shape != state[n].shape]
    if missing or extra or shapes:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which it does not know" if extra else ""
        if not what:
            what = f"has {shapes[0]} as {tuple(state[shapes[0]].shape)}, not {tuple(own[shapes[0]].shape)}"
        raise ModelError(f"the weights are not those of {factory}: the file {what}")
    module.load_state_dict(state)


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that are another one under a second name: an export has them once, under the first."""
    first: dict[tuple[int, torch.Size], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in first:
            tied[name] = first[key]
        first.setdefault(key, name)
    return tied


def _parameters_of(module: nn.Module) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in plain and p.default is inspect.Parameter.empty]


def named(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of what a module returned, by name. Raises ``ModelError`` for anything else."""
    if isinstance(value, Tensor):
        yield ".".join(path) or "output_0", value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from named(inner, (*path, str(key)))
    elif isinstance(value, tuple | list):
        for place, inner in enumerate(value):
            yield from named(inner, (*path, str(place)) if path else (f"output_{place}",))
    elif value is not None:
        what = f"its output {'.'.join(path)!r}" if path else "what it returns"
        raise ModelError(f"{what} is a {type(value).__name__}; only tensors can be given back")


# Finding out


def describe(content: ModelContent, files: Mapping[str, Path], said: Sequence[TensorInfo] = ()) -> ModelContent:
    """``content`` with its inputs and outputs, found by trial runs of two and three inputs; ``said`` are the inputs as the user
    names them. Raises ``ModelError``."""
    loaded = load(content.format, files, content.factory)
    if said:
        unknown = [info.name for info in said if info.name not in loaded.names]
        if unknown or len(said) != len(loaded.names):
            raise ModelError(f"its inputs are {', '.join(loaded.names)}; say each of them once with --input")
        ordered = tuple(sorted(said, key=lambda info: loaded.names.index(info.name)))
        return replace(content, inputs=ordered, outputs=_outputs(loaded, ordered))
    if content.format == "exported":
        inputs = _exported_inputs(program_of(files["model"]))
        return replace(content, inputs=inputs, outputs=_outputs(loaded, inputs))
    return _guess(content, loaded, files)


def _exported_inputs(program: Any) -> tuple[TensorInfo, ...]:
    wanted = [str(name) for name in program.graph_signature.user_inputs]
    placeholders = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted}
    found = []
    for name in wanted:
        value = placeholders.get(name)
        if not isinstance(value, Tensor):
            raise ModelError(f"its input {name!r} is no tensor; export a module that takes tensors only")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        found.append(TensorInfo(name, _dtype_name(value.dtype), shape, is_batched=bool(shape)))
    return tuple(found)


def _guess(content: ModelContent, loaded: Loaded, files: Mapping[str, Path]) -> ModelContent:
    """By its first weights what it may take, and by trial what it does."""
    tensors = _weights(content, files)
    last = ""
    for inputs in _candidates(loaded.names, tensors):
        try:
            outputs = _outputs(loaded, inputs)
        except RandomModelError:
            raise
        except ModelError as error:
            last = str(error)
        else:
            return replace(content, inputs=_loosened(loaded, inputs), outputs=outputs)
    names = loaded.names or ("x",)
    example = " ".join(f"--input {name}=float32[N,3,224,224]" for name in names)
    why = f" ({last})" if last else ""
    raise ModelError(f"what goes into it could not be found out{why}: say it, as in {example}")


def _weights(content: ModelContent, files: Mapping[str, Path]) -> list[Tensor]:
    if content.format == "torchscript":
        return list(_script(files["model"]).parameters())
    return list(make(content.factory, files.get("code")).parameters())


def _candidates(names: Sequence[str], weights: Sequence[Tensor]) -> Iterator[tuple[TensorInfo, ...]]:
    first = next((weight for weight in weights if weight.dim() > 1), None)
    if not names or first is None:
        return
    shapes: list[tuple[str, tuple[int, ...]]] = []
    if first.dim() >= 3:
        for channels in dict.fromkeys((first.shape[1], 3, 1)):
            sizes = _SIDES if first.dim() == 4 else _LENGTHS
            shapes += [("float32", (channels, *[size] * (first.dim() - 2))) for size in sizes]
    else:
        shapes += [("float32", (first.shape[1],)), ("float32", (_TOKENS[0], first.shape[1]))]
        shapes += [("int64", (size,)) for size in _TOKENS]
        shapes += [("float32", (size,)) for size in _LENGTHS]
    for dtype, shape in shapes:
        yield tuple(TensorInfo(name, dtype, (None, *shape)) for name in names)


def _loosened(loaded: Loaded, inputs: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """Dimensions that may have other sizes, too, are None; one after another is tried, in all inputs at once, while all others
    are as they were found."""
    found = inputs
    for place in range(1, max(len(info.shape) for info in inputs)):
        with suppress(ModelError):
            for more in (1, 16):
                _outputs(loaded, tuple(_with(i, place, (i.shape[place] or 0) + more) for i in inputs))
            found = tuple(_with(info, place, None) for info in found)
    return found


def _with(info: TensorInfo, place: int, size: int | None) -> TensorInfo:
    return replace(info, shape=(*info.shape[:place], size, *info.shape[place + 1 :]))


def _outputs(loaded: Loaded, inputs: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """What comes out, by runs of two sizes where any size may be given. Raises ``ModelError``."""
    sizes = _TRIALS if all(info.shape[:1] == (None,) for info in inputs if info.is_batched) else (0, 0)
    small, large = (_trial(loaded, inputs, size) for size in sizes)
    if not small:
        raise ModelError("it returns no tensor")
    _demand_steady(loaded, inputs, sizes[0])
    found = []
    for name, tensor in small.items():
        other = large.get(name)
        if other is None or other.dim() != tensor.dim():
            raise ModelError(f"its output {name!r} is not there for every batch")
        shape = tuple(a if a == b else None for a, b in zip(tensor.shape, other.shape, strict=True))
        is_batched = bool(shape) and (shape[0] is None or sizes == (0, 0))
        found.append(TensorInfo(name, _dtype_name(tensor.dtype), shape, is_batched))
    if not any(info.is_batched for info in found):
        raise ModelError("no output has the batch as its first dimension")
    return tuple(found)


def _demand_steady(loaded: Loaded, inputs: tuple[TensorInfo, ...], size: int) -> None:
    """The same inputs give the same outputs. What is exported while it trains draws anew each time."""
    generator = torch.Generator().manual_seed(0)
    given = {info.name: drawn(example(info, size), generator) for info in inputs}
    first, second = loaded.run(given), loaded.run(given)
    for name, tensor in first.items():
        if not torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(second[name])):
            raise RandomModelError(
                "the same input gives another answer each time: it was exported or traced in training mode; call eval() first"
            )


def drawn(zeros: Tensor, generator: torch.Generator) -> Tensor:
    """Values for a trial; whole numbers stay zeros, which are in range everywhere."""
    if not zeros.is_floating_point():
        return zeros
    return torch.randn(zeros.shape, generator=generator).to(zeros.dtype)


def _trial(loaded: Loaded, inputs: tuple[TensorInfo, ...], size: int) -> dict[str, Tensor]:
    try:
        return loaded.run({info.name: example(info, size) for info in inputs})
    except ModelError:
        raise
    except Exception as error:  # whatever the module raises for what it cannot take
        raise ModelError(f"a trial run with {_shown(inputs, size)} raised {line_of(error)}") from error


def example(info: TensorInfo, size: int) -> Tensor:
    """A batch of ``size`` inputs of zeros; other dimensions of any size are 8."""
    shape = [(size if place == 0 and info.is_batched else 8) if n is None else n for place, n in enumerate(info.shape)]
    return torch.zeros(shape, dtype=getattr(torch, info.dtype))


def _shown(inputs: Sequence[TensorInfo], size: int) -> str:
    return ", ".join(f"{info.name} {tuple(example(info, size).shape)} {info.dtype}" for info in inputs)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def line_of(error: BaseException) -> str:
    """The line of a message that says most: the last one that is not empty, or that of a nested traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("RuntimeError:", "TypeError:", "ValueError:"))]
    return (told or lines or [type(error).__name__])[-1][:200]
