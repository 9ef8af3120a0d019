"""Cutting a model into stages by memory: as few as will do, with weights of about equal size, where little is to travel."""

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec import Struct
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from dmi_protocol.model import ModelContent
from dmi_tensor.models import Loaded, ModelError, drawn, example, line_of, load, program_of
from dmi_tensor.stages import StageGraph, Whole, is_symbol

_TRIALS = (1, 2, 3)
"""Batches of these sizes are computed both ways, and compared."""
_HALVINGS = 40
_SPARE, _ROOM = 0.1, (0.0, 0.05, 0.1, 0.2)
"""So much smaller may a stage be, and so much larger than need be, where less travels then."""


class CutStage(Struct, frozen=True):
    """Operations ``first`` to ``last``, and their weights in the file at ``weights``, so many bytes of them."""

    first: int
    last: int
    weights: Path
    weight_bytes: int


class Cut(NamedTuple):
    """``graph`` is the file that all stages share."""

    graph: Path
    stages: tuple[CutStage, ...]


def cut(content: ModelContent, files: Mapping[str, Path], most_bytes: int, directory: Path) -> Cut:
    """Write the stages of a model into ``directory``, none with more than ``most_bytes`` of weights.

    The model is in memory once. Its stages are computed one after another with drawn inputs, and must give the bits that it
    gives. Raises ``ModelError`` with one line for a model that cannot be cut so.
    """
    program, model = _captured(content, files)
    whole = Whole(program, [info.name for info in content.inputs])
    _demand_constant(whole)
    bounds = _bounds(whole, most_bytes)
    graph = directory / "graph"
    _write_graph(program, graph)
    stages = tuple(
        _write_stage(whole, first, last, directory / f"weights-{place}") for place, (first, last) in enumerate(bounds)
    )
    _demand_equal(content, model, whole, bounds)
    return Cut(graph, stages)


def _captured(content: ModelContent, files: Mapping[str, Path]) -> tuple[Any, Loaded]:
    """The exported program of a model, and the model, which share their weights."""
    if content.format == "exported":
        program = program_of(files["model"])
        return program, Loaded(program.module(), [info.name for info in content.inputs])
    if content.format == "torchscript":
        raise ModelError("a TorchScript file cannot be cut into stages: save it with torch.export.save")
    model = load(content.format, files, content.factory)
    module = model.module
    assert isinstance(module, nn.Module)
    inputs = tuple(example(info, 2) for info in content.inputs)
    auto = torch.export.Dim.AUTO
    free = tuple({d: auto for d, size in enumerate(info.shape) if size is None} or None for info in content.inputs)
    try:
        return torch.export.export(module, inputs, dynamic_shapes=free), model
    except Exception as error:  # whatever the module makes torch raise
        raise ModelError(f"it cannot be exported, and so not be cut into stages: {line_of(error)}") from error


# Where


def _bounds(whole: Whole, most_bytes: int) -> list[tuple[int, int]]:
    """As few stages as will do; the largest of them as small as it can be then."""
    able = _able(whole)
    fewest = _greedy(whole, able, most_bytes)
    if fewest is None:
        name, size = _largest(whole, able)
        raise ModelError(
            f"what belongs together around {name} has {size:,} bytes of weights, and {most_bytes:,} may be held"
        )
    low, high, best = 0, most_bytes, fewest
    for _ in range(_HALVINGS):
        if low >= high:
            break
        middle = (low + high) // 2
        found = _greedy(whole, able, middle)
        if found is not None and len(found) <= len(fewest):
            best, high = found, middle
        else:
            low = middle + 1
    roomy = (_greedy(whole, able, min(most_bytes, int(high * (1 + more))), _SPARE) for more in _ROOM)
    return next((found for found in roomy if found is not None and len(found) <= len(fewest)), best)


def _greedy(whole: Whole, able: Sequence[int], most_bytes: int, spare: float = 0.0) -> list[tuple[int, int]] | None:
    """Each stage as long as may be; None where one cannot be small enough. ``able`` are the cuts that there may be, the end
    being one of them. Of cuts where a stage lacks at most this share of what it could have, the one where the least travels is
    taken."""
    found: list[tuple[int, int]] = []
    first, places = 0, list(able)
    while first < len(whole.operations):
        held: dict[str, int] = {}
        fits: list[tuple[int, int]] = []
        at = first
        for place in (place for place in places if place > first):
            held |= _sizes(whole, at, place)
            at = place
            if (size := sum(held.values())) > most_bytes:
                break
            fits.append((place, size))
        if not fits:
            return None
        last, most = fits[-1]
        if last != len(whole.operations):
            last = min(
                (place for place, size in fits if size >= most * (1 - spare)), key=lambda place: _travels(whole, place)
            )
        found.append((first, last))
        first = last
    return found


def _able(whole: Whole) -> list[int]:
    """Before which operations the program may be cut: what is live there can travel, and nobody writes into it later, for who has
    another view of the same memory would not see that."""
    roots = {node: _root(node) for node in whole.operations}
    written: dict[fx.Node, int] = {}
    for place, node in enumerate(whole.operations):
        for changed in _written(node):
            written[roots.get(changed, changed)] = place
    end = len(whole.operations)
    can = [cut for cut in range(1, end) if all(_can_travel(node) for node in whole.live(cut))]
    return [c for c in can if not any(whole.place(root) < c <= last for root, last in written.items())] + [end]


def _can_travel(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return is_symbol(node)
    strides = [_hint(stride) for stride in value.stride()]
    order = sorted(range(value.dim()), key=lambda place: -strides[place])
    return value.permute(order).is_contiguous()


def _root(node: fx.Node) -> fx.Node:
    """Whose memory this is a view of, or writes into; itself, where it has its own."""
    while (source := _aliased(node)) is not None:
        node = source
    return node


def _aliased(node: fx.Node) -> fx.Node | None:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return None
    returned = {label for out in schema.returns if out.alias_info for label in out.alias_info.before_set}
    for argument, value in zip(schema.arguments, node.args, strict=False):
        is_same = argument.alias_info is not None and returned & set(argument.alias_info.before_set)
        if is_same and isinstance(value, fx.Node):
            return value
    return None


def _written(node: fx.Node) -> Iterator[fx.Node]:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
            yield value


def _demand_constant(whole: Whole) -> None:
    for node in whole.operations:
        for changed in _written(node):
            if (root := _root(changed)).op == "get_attr":
                raise ModelError(f"it changes its own {root.target} as it computes, and so cannot be cut into stages")


def _sizes(whole: Whole, first: int, last: int) -> dict[str, int]:
    values = {str(node.target): whole.attribute(node) for node in whole.weights(first, last)}
    return {name: value.nbytes for name, value in values.items() if isinstance(value, Tensor)}


def _travels(whole: Whole, place: int) -> int:
    """How many bytes are live at a cut, for a batch as it was exported."""
    values = [node.meta.get("val") for node in whole.live(place)]
    return sum(_hinted(value) for value in values if isinstance(value, Tensor))


def _hinted(value: Tensor) -> int:
    size = value.element_size()
    for each in value.shape:
        size *= _hint(each)
    return size


def _hint(size: int | torch.SymInt) -> int:
    """What it was for the batch that was exported."""
    return int(size.node.hint or 2) if isinstance(size, torch.SymInt) else size


def _largest(whole: Whole, able: Sequence[int]) -> tuple[str, int]:
    """The weights that no cut parts and that have the most bytes: one of their names, and their size."""
    found = [_sizes(whole, first, last) for first, last in zip((0, *able), able, strict=False)]
    most = max(found, key=lambda sizes: sum(sizes.values()))
    return max(most, key=lambda name: most[name]), sum(most.values())


# What


def _write_graph(program: Any, path: Path) -> None:
    """The program, with sizes in the place of its weights."""
    bare = copy.copy(program)
    bare._state_dict = {name: _bare(tensor) for name, tensor in program.state_dict.items()}
    bare._constants = {
        name: _bare(value) if isinstance(value, Tensor) else value for name, value in program.constants.items()
    }
    written = io.BytesIO()  # torch insists on a suffix for paths
    torch.export.save(bare, written)
    path.write_bytes(written.getbuffer())


def _bare(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def _weights(whole: Whole, first: int, last: int) -> dict[str, Tensor]:
    found = {str(node.target): whole.attribute(node) for node in whole.weights(first, last)}
    return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}


def _write_stage(whole: Whole, first: int, last: int, path: Path) -> CutStage:
    """A tensor that has two names is written twice: which one an operation uses is all that it knows."""
    weights = _weights(whole, first, last)
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}, path)
    return CutStage(first, last, path, sum(tensor.nbytes for tensor in weights.values()))


def _demand_equal(content: ModelContent, model: Loaded, whole: Whole, bounds: Sequence[tuple[int, int]]) -> None:
    """Computed in stages, the same inputs give the same bits."""
    stages = [StageGraph(whole, first, last, _weights(whole, first, last)) for first, last in bounds]
    is_free = all(info.shape[:1] == (None,) for info in content.inputs if info.is_batched)
    generator = torch.Generator().manual_seed(0)
    for rows in _TRIALS if is_free else (0,):
        inputs = {info.name: drawn(example(info, rows), generator) for info in content.inputs}
        wanted, found = model.run(inputs), inputs
        for stage in stages:
            found = {name: tensor.clone() for name, tensor in stage.run(found).items()}  # as it travels
        if wanted.keys() != found.keys() or not all(_is_same(wanted[name], found[name]) for name in wanted):
            raise ModelError("cut into stages, its outputs would have other bits")


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
