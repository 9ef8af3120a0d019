"""Stages: a model's graph, of which each process computes a part, with the weights of that part alone in memory.

The graph is that of an exported program. Its *operations*, in order, are numbered from 0; a stage is a run of them. What an
earlier stage computed and a later one needs is *live* at the cut between the two, and travels; whatever is live at a cut passes
through every stage in between. Sizes that are computed with (``x.shape[0]``) travel as tensors without dimensions. A stage
calls the operations that the whole program calls, in its order, so outputs have its bits.
"""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dmi_protocol.model import ModelContent
from dmi_tensor.models import ModelError, named, program_of

_SYMBOLS: dict[type, tuple[type, torch.dtype]] = {
    torch.SymInt: (int, torch.int64),
    torch.SymFloat: (float, torch.float64),
    torch.SymBool: (bool, torch.bool),
}


class Whole:
    """The graph of a program, as its stages see it; ``names`` are those of the model's inputs, in order."""

    def __init__(self, program: Any, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.module: fx.GraphModule = program.module()
        nodes = list(self.module.graph.nodes)
        self.inputs = [node for node in nodes if node.op == "placeholder"]
        self.operations = [node for node in nodes if node.op not in {"placeholder", "get_attr", "output"}]
        (self.output,) = (node for node in nodes if node.op == "output")
        self._place = {node: place for place, node in enumerate(self.operations)}
        self._last_use = {node: self._used(node) for node in (*self.inputs, *self.operations)}
        self._out_spec = program.call_spec.out_spec

    def place(self, node: fx.Node) -> int:
        """The number of an operation; -1 of what is there before any."""
        return self._place.get(node, -1)

    def _used(self, node: fx.Node) -> int:
        """The number of the last operation that needs what ``node`` gives; that of none, where it is an output."""
        return max((self._place.get(user, len(self.operations)) for user in node.users), default=-1)

    def live(self, cut: int) -> list[fx.Node]:
        """What is there before operation ``cut`` and needed by it or later ones, in order; weights are not among it."""
        nodes = (*self.inputs, *self.operations[:cut])
        if cut == len(self.operations):
            return []
        return [node for node in nodes if self._last_use[node] >= cut]

    def weights(self, first: int, last: int) -> list[fx.Node]:
        """The tensors of the model that operations ``first`` to ``last`` need; at the end those that are outputs, too."""
        users = [*self.operations[first:last], *([self.output] if last == len(self.operations) else [])]
        needed = dict.fromkeys(node for user in users for node in user.all_input_nodes)
        return [node for node in needed if node.op == "get_attr"]

    def outputs(self, flat: Sequence[Any]) -> dict[str, Tensor]:
        """Those of the model, by name."""
        return dict(named(pytree.tree_unflatten(list(flat), self._out_spec)))

    def attribute(self, node: fx.Node) -> Any:
        """A weight, or a graph that an operation is given."""
        return operator.attrgetter(str(node.target))(self.module)


def _alike(weight: Tensor, given: Tensor) -> nn.Parameter:
    """For tensors that could have gradients torch takes other ways, which give other bits."""
    return nn.Parameter(weight, requires_grad=given.requires_grad)


def is_symbol(node: fx.Node) -> bool:
    """Is it a number that depends on the inputs' sizes?"""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


class StageGraph:
    """Operations ``first`` to ``last`` of a program as a module of their own. ``weights`` gives tensors by the names that the
    program has for them."""

    def __init__(self, whole: Whole, first: int, last: int, weights: Mapping[str, Tensor]) -> None:
        """Raises ``ModelError`` where a weight is missing."""
        self._whole = whole
        self._names = whole.names
        self._is_first = not first
        self.is_last = last == len(whole.operations)
        self._given = whole.live(first) if first else whole.inputs
        self._passed = whole.live(last)
        graph, copies, root = fx.Graph(), dict[fx.Node, fx.Node](), nn.Module()
        for node in self._given:
            copies[node] = graph.placeholder(node.name)
        for number, node in enumerate(whole.weights(first, last)):
            name, value = f"weight_{number}", whole.attribute(node)
            if isinstance(value, Tensor):
                if str(node.target) not in weights:
                    raise ModelError(f"the weights are not those of this stage: {node.target} is missing")
                root.register_parameter(name, _alike(weights[str(node.target)], value))
            else:
                root.add_module(name, value)
            copies[node] = graph.get_attr(name)
        for node in whole.operations[first:last]:
            if node.op == "call_module":  # what is demanded of the inputs
                root.add_module(str(node.target), whole.attribute(node))
            copies[node] = graph.node_copy(node, copies.__getitem__)
        flat = whole.output.args[0] if self.is_last else tuple(self._passed)
        graph.output(fx.map_arg(flat, copies.__getitem__))
        self._module = fx.GraphModule(root, graph)

    def example(self, rows: int) -> dict[str, Tensor]:
        """A batch of ``rows`` inputs of zeros, or of what the stage before may give for one."""
        if self._is_first:
            return {name: zeros(node, rows) for name, node in zip(self._names, self._given, strict=True)}
        return dict(travelling(node.name, zeros(node, rows)) for node in self._given)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch; without gradients. The first stage takes the model's inputs, by name, and any other one what ``run`` of the
        stage before has given; the last one gives the model's outputs. Raises what the operations do."""
        given = [inputs[name] for name in self._names] if self._is_first else arrived(inputs, self._given)
        with torch.inference_mode():
            found = self._module(*given)
            if self.is_last:
                return self._whole.outputs(found if isinstance(found, tuple | list) else (found,))
            return dict(travelling(node.name, value) for node, value in zip(self._passed, found, strict=True))


def zeros(node: fx.Node, rows: int) -> Any:
    """What ``node`` may give; whatever depends on the inputs' sizes is ``rows``."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _SYMBOLS[type(value)][0](rows) if type(value) in _SYMBOLS else value
    return torch.zeros([n if type(n) is int else rows for n in value.shape], dtype=value.dtype)


# What travels


def travelling(name: str, value: Any) -> tuple[str, Tensor]:
    """A value that is live at a cut as a contiguous tensor, and a name that says in which order its dimensions lie in memory:
    torch computes other bits where that is another one. Raises ``ValueError`` for memory with gaps."""
    if not isinstance(value, Tensor):
        return name, torch.tensor(value, dtype=next(dtype for kind, dtype in _SYMBOLS.values() if type(value) is kind))
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda place: -strides[place])
    if value.is_contiguous() or order == sorted(order):
        order = list(range(value.dim()))
    moved = value.permute(order)
    if not moved.is_contiguous():
        raise ValueError(f"{name} lies in memory with gaps between its values, and cannot travel so")
    return f"{name}@{'.'.join(map(str, order))}", moved


def arrived(inputs: Mapping[str, Tensor], wanted: Sequence[fx.Node]) -> list[Any]:
    """What ``travelling`` was given, in the order that is ``wanted``."""
    found: dict[str, Any] = {}
    for told, tensor in inputs.items():
        name, is_tensor, order = told.partition("@")
        places = [int(place) for place in order.split(".") if place]
        found[name] = tensor.permute([places.index(n) for n in range(len(places))]) if is_tensor else tensor.item()
    return [found[node.name] for node in wanted]


def load_stage(content: ModelContent, stage: int, files: Mapping[str, Path]) -> StageGraph:
    """A stage in memory. ``files`` gives the paths of its ``graph`` and its ``weights``. Raises ``ModelError``."""
    bounds = content.stages[stage]
    return StageGraph(whole_of(content, files["graph"]), bounds.first, bounds.last, weights_of(files["weights"]))


def whole_of(content: ModelContent, graph: Path) -> Whole:
    """The graph that all stages share. Raises ``ModelError``."""
    return Whole(program_of(graph), [info.name for info in content.inputs])


def weights_of(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Those of a stage. They are copied, for in a file tensors do not begin where torch would have them begin, and then some
    operations have other bits. Raises ``ModelError``."""
    try:
        return {name: tensor.clone().to(device) for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.name} is no whole safetensors file: {error}") from error
