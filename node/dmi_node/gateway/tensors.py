"""Tensors as the Open Inference Protocol (v2) writes them, in JSON and as bytes.

In memory a tensor is its bytes in C order, little endian, as torch has them; the strings of ``BYTES`` stay Python's.
"""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dmi_node.gateway.http import HttpError
from dmi_protocol.serving.datatypes import DATATYPES
from dmi_protocol.tensor_spec import DIMENSIONS, ITEM_BYTES

DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
BYTES = "BYTES"
_NUMPY = {dtype: np.dtype("float32" if dtype == "bfloat16" else dtype) for dtype in DATATYPES}
_LENGTH = struct.Struct("<I")
Buffer = bytes | memoryview


class GivenTensor(NamedTuple):
    """A tensor of a request or of an answer. ``datatype`` is the protocol's word."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    @property
    def length_bytes(self) -> int:
        """How many bytes it has."""
        return self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)


def shape_of(value: Any, field: str) -> tuple[int, ...]:
    """A shape; raises ``HttpError`` that names ``field``."""
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        raise HttpError(400, f"{field}: a shape is a list of whole numbers, not {str(value)[:80]!r}")
    if any(size < 0 for size in value) or len(value) > DIMENSIONS:
        raise HttpError(400, f"{field}: {str(value)[:80]} is no shape: sizes are 0 or more, and at most {DIMENSIONS}")
    return tuple(value)


def check_size(datatype: str, shape: Sequence[int], given_bytes: int, field: str) -> None:
    """Raise ``HttpError`` unless a tensor of this shape has so many bytes."""
    if datatype in DTYPES and prod(shape) * ITEM_BYTES[DTYPES[datatype]] != given_bytes:
        wanted = prod(shape) * ITEM_BYTES[DTYPES[datatype]]
        raise HttpError(400, f"{field}: {given_bytes} bytes, where {datatype} of shape {list(shape)} has {wanted}")


def from_json(datatype: str, shape: Sequence[int], data: Any, field: str) -> bytes:
    """The bytes of ``data``, a list that may be nested as the shape is. Raises ``HttpError`` that names ``field``."""
    if not isinstance(data, list):
        raise HttpError(400, f"{field}: a list is wanted, not {str(data)[:80]!r}")
    count = prod(shape)
    try:
        found = _array(data, datatype)
    except (ValueError, OverflowError) as error:
        raise HttpError(400, f"{field}: the lists are not of equal lengths, or not of numbers") from error
    if found.size != count or (found.ndim > 1 and found.shape != tuple(shape)):
        raise HttpError(400, f"{field}: {_counted(found)}, where the shape is {list(shape)}")
    return _cast(found, DTYPES[datatype], datatype, field)


def _array(data: list[Any], datatype: str) -> "np.ndarray[Any, Any]":
    """As NumPy finds it; whole numbers that fit into no signed integer would become floats."""
    found = np.array(data)
    if datatype == "UINT64" and found.dtype.kind == "f":
        whole = np.array(data, object)
        if all(type(value) is int for value in whole.flat):
            return whole.astype(np.uint64)
    return found


def _counted(found: "np.ndarray[Any, Any]") -> str:
    if found.ndim > 1:
        return f"the lists are of shape {list(found.shape)}"
    return f"{found.size} element{'' if found.size == 1 else 's'}"


def _cast(found: "np.ndarray[Any, Any]", dtype: str, datatype: str, field: str) -> bytes:
    """Nothing is rounded or cut that was written as something else."""
    kind, wanted = found.dtype.kind, _NUMPY[dtype]
    fits = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[wanted.kind]
    if found.size and kind not in fits:
        names = {"f": "numbers", "i": "whole numbers", "u": "whole numbers", "b": "true and false"}
        raise HttpError(400, f"{field}: {datatype} takes {names[wanted.kind]} alone")
    if wanted.kind in "iu" and found.size:
        range_ = np.iinfo(wanted)
        if int(found.min()) < range_.min or int(found.max()) > range_.max:
            raise HttpError(400, f"{field}: a number is out of the range of {datatype}")
    with np.errstate(over="ignore"):
        cast = found.astype(wanted)
    if dtype == "bfloat16":
        return _to_bfloat16(cast)
    return cast.tobytes()


def _to_bfloat16(found: "np.ndarray[Any, Any]") -> bytes:
    """To the nearest, ties to even, as torch rounds; NaN stays one."""
    bits = found.astype("<f4").view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(found), np.uint16(0x7FC0), rounded).astype("<u2").tobytes()


def strings_from_json(shape: Sequence[int], data: Any, field: str) -> bytes:
    """The strings of ``BYTES``, nested or not, each behind its length."""
    flat: list[str] = []
    stack = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, str):
            flat.append(value)
        else:
            raise HttpError(400, f"{field}: BYTES takes strings alone, not {str(value)[:40]!r}")
    if len(flat) != prod(shape):
        raise HttpError(400, f"{field}: {len(flat)} strings, where the shape is {list(shape)}")
    return b"".join(_LENGTH.pack(len(raw)) + raw for raw in (text.encode() for text in flat))


def check_strings(shape: Sequence[int], data: Buffer, field: str) -> None:
    """Raise ``HttpError`` unless these are as many strings, each behind its length."""
    place, count, raw = 0, 0, memoryview(data)
    while place + _LENGTH.size <= len(raw):
        place += _LENGTH.size + _LENGTH.unpack_from(raw, place)[0]
        count += 1
    if place != len(raw) or count != prod(shape):
        raise HttpError(400, f"{field}: {len(raw)} bytes are no {prod(shape)} strings, each behind its length")


def to_json(tensor: GivenTensor) -> list[Any]:
    """Its elements, flat. (JSON has no NaN and no infinity: they are null.)"""
    dtype = DTYPES[tensor.datatype]
    if dtype == "bfloat16":
        found = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        found = np.frombuffer(tensor.data, _NUMPY[dtype])
    listed: list[Any] = found.tolist()
    return listed
