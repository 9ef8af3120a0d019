"""What the model takes: whether a request's inputs are of it, and which requests may share a batch."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from dmi_node.gateway.http import HttpError
from dmi_node.gateway.tensors import GivenTensor
from dmi_protocol import limits
from dmi_protocol.model import ModelContent, TensorInfo
from dmi_protocol.serving.datatypes import DATATYPES


class Inputs(NamedTuple):
    """The inputs of a request, in the model's order. ``rows`` is how many it computes, ``group`` is None where it must be
    computed alone."""

    tensors: tuple[GivenTensor, ...]
    rows: int
    group: Hashable | None
    size_bytes: int


class Contract:
    """Of one version of a model."""

    def __init__(self, content: ModelContent) -> None:
        self.inputs = content.inputs
        self.outputs = content.outputs
        self._known = {info.name: info for info in content.inputs}
        self.is_batched = all(info.is_batched for info in (*content.inputs, *content.outputs))
        """Can requests be joined, and cut, along the first dimension?"""

    def __eq__(self, other: object) -> bool:
        """Do they take and give the same?"""
        return isinstance(other, Contract) and (self.inputs, self.outputs) == (other.inputs, other.outputs)

    __hash__ = None  # type: ignore[assignment]

    def datatype(self, name: str) -> str:
        """That of an input."""
        return DATATYPES.get(self._known[name].dtype, self._known[name].dtype)

    def check(self, given: Sequence[GivenTensor], fields: Mapping[str, str]) -> Inputs:
        """Raises ``HttpError`` that names the field of the input, by its name."""
        found: dict[str, GivenTensor] = {}
        for tensor in given:
            if tensor.name not in self._known:
                raise HttpError(400, f"{fields[tensor.name]}.name: {_no_input(tensor.name, self._known)}")
            if tensor.name in found:
                raise HttpError(400, f"{fields[tensor.name]}.name: the input {tensor.name!r} is given twice")
            self._check(tensor, self._known[tensor.name], fields[tensor.name])
            found[tensor.name] = tensor
        missing = [name for name in self._known if name not in found]
        if missing:
            raise HttpError(400, f"inputs: {missing[0]!r} is missing; the model takes {_listed(self._known)}")
        tensors = tuple(found[name] for name in self._known)
        rows = self._rows(tensors, fields)
        size_bytes = sum(tensor.length_bytes for tensor in tensors)
        if not self.is_batched:
            return Inputs(tensors, rows, None, size_bytes)
        return Inputs(tensors, rows, tuple(tensor.shape[1:] for tensor in tensors), size_bytes)

    def _check(self, tensor: GivenTensor, info: TensorInfo, field: str) -> None:
        wanted = DATATYPES.get(info.dtype, info.dtype)
        if tensor.datatype != wanted:
            raise HttpError(400, f"{field}.datatype: {tensor.datatype}; the input {info.name!r} is {wanted}")
        fits = len(tensor.shape) == len(info.shape) and all(
            size is None or size == given for size, given in zip(info.shape, tensor.shape, strict=True)
        )
        if not fits:
            raise HttpError(400, f"{field}.shape: {list(tensor.shape)}; the input {info.name!r} is {shown(info)}")

    def _rows(self, tensors: Sequence[GivenTensor], fields: Mapping[str, str]) -> int:
        """The first dimension that all batched inputs have."""
        batched = [tensor for tensor in tensors if self._known[tensor.name].is_batched]
        if not batched:
            return 1
        rows = batched[0].shape[0]
        if rows > limits.REQUEST_ROWS:
            raise HttpError(
                400, f"{fields[batched[0].name]}.shape: a request has at most {limits.REQUEST_ROWS} inputs, not {rows}"
            )
        for tensor in batched[1:]:
            if tensor.shape[0] != rows:
                first = f"{tensor.shape[0]} inputs, where {batched[0].name!r} has {rows}"
                raise HttpError(400, f"{fields[tensor.name]}.shape: {first}")
        return rows


def shown(info: TensorInfo) -> list[int]:
    """Its shape as the protocol writes it: -1 where any size may be given."""
    return [-1 if size is None else size for size in info.shape]


def _listed(known: Mapping[str, TensorInfo]) -> str:
    return ", ".join(f"{name} {DATATYPES.get(info.dtype, info.dtype)} {shown(info)}" for name, info in known.items())


def _no_input(name: str, known: Mapping[str, TensorInfo]) -> str:
    return f"the model has no input {name[:80]!r}; it takes {_listed(known)}"
