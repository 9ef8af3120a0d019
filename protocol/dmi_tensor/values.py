"""Values as bytes, exactly: what a script keeps in ``run.state``, what a scheduler remembers, what the lead tells the others.

What travels: None, numbers of Python's and NumPy's, text, bytes, tuples, lists, sets, dicts (also ordered ones, counters and
deques), NumPy arrays and dense tensors on the CPU, however nested. The bytes say what is what, and reading them runs nothing.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgpack
import msgspec
import numpy as np
import torch

from dmi_protocol.errors import RemoteProtocolError
from dmi_tensor.dtypes import DTYPES, NAMES


class _Kind(IntEnum):
    """MessagePack's extension types, as they are used here."""

    INTEGER, TUPLE, SET, FROZEN_SET, COMPLEX, SCALAR, ARRAY, TENSOR, ORDERED, COUNTER, DEQUE, SIZE = range(1, 13)


_LONGEST = 1 << 48
"""No dimension is longer."""
_NUMPY_KINDS = frozenset("biufcSUmM")
"""Everything but objects and records."""


class CannotTravelError(Exception):
    """The text names the place inside the value, and what is there: ``['best']: a function``."""


def pack(value: object) -> bytes:
    """``value`` as bytes. Raises ``CannotTravelError``."""
    try:
        return _packed(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise CannotTravelError(_culprit(value)) from None


def unpack(data: bytes) -> Any:
    """What ``pack`` was given, of the same types. Raises ``RemoteProtocolError`` for bytes that it never gives."""
    try:
        return msgpack.unpackb(data, ext_hook=_unpacked, strict_map_key=False, use_list=True)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        msgpack.UnpackException,
    ) as error:
        raise RemoteProtocolError(f"no packed value: {error}") from error


def _packed(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, default=_extended, strict_types=True)
    return packed


def _extended(value: object) -> msgpack.ExtType:
    """What MessagePack has no type for, and whatever looks like one of its types without being it."""
    kind, content = _content(value)
    return msgpack.ExtType(kind, content if isinstance(content, bytes) else _packed(content))


def _content(value: object) -> tuple[int, object]:
    match value:
        case np.generic() if value.dtype.kind in _NUMPY_KINDS:
            return _Kind.SCALAR, [value.dtype.str, value.tobytes()]
        case int() if type(value) is int:
            return _Kind.INTEGER, str(value)
        case complex() if type(value) is complex:
            return _Kind.COMPLEX, [value.real, value.imag]
        case torch.Size():
            return _Kind.SIZE, list(value)
        case tuple() if type(value) is tuple:
            return _Kind.TUPLE, list(value)
        case set() | frozenset() if type(value) in {set, frozenset}:
            items = sorted(_packed(item) for item in value)  # the same bytes whatever their order here
            return _Kind.SET if type(value) is set else _Kind.FROZEN_SET, items
        case OrderedDict() | Counter() if type(value) in {OrderedDict, Counter}:
            return _Kind.ORDERED if type(value) is OrderedDict else _Kind.COUNTER, [
                list(pair) for pair in value.items()
            ]
        case deque() if type(value) is deque:
            return _Kind.DEQUE, [value.maxlen, list(value)]
        case np.ndarray() if type(value) is np.ndarray and value.dtype.kind in _NUMPY_KINDS:
            return _Kind.ARRAY, [value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]
        case torch.Tensor() if _is_dense(value):
            flat = value.contiguous().view(-1)
            data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
            return _Kind.TENSOR, [NAMES[value.dtype], list(value.shape), data]
    raise TypeError(type(value).__name__)


def _is_dense(tensor: torch.Tensor) -> bool:
    is_plain = type(tensor) is torch.Tensor and tensor.dtype in NAMES and not tensor.requires_grad
    return is_plain and tensor.layout == torch.strided and tensor.device.type == "cpu"


_CONTENTS: dict[int, Any] = {
    _Kind.INTEGER: str,
    _Kind.TUPLE: list[Any],
    _Kind.SET: list[bytes],
    _Kind.FROZEN_SET: list[bytes],
    _Kind.COMPLEX: tuple[float, float],
    _Kind.SCALAR: tuple[str, bytes],
    _Kind.ARRAY: tuple[str, list[int], bytes],
    _Kind.TENSOR: tuple[str, list[int], bytes],
    _Kind.ORDERED: list[tuple[Any, Any]],
    _Kind.COUNTER: list[tuple[Any, Any]],
    _Kind.DEQUE: tuple[int | None, list[Any]],
    _Kind.SIZE: list[int],
}
"""Of what each kind is made."""


def _unpacked(kind: int, data: bytes) -> Any:
    content = msgspec.convert(unpack(data), _CONTENTS[kind])
    match kind:
        case _Kind.INTEGER:
            return int(content)
        case _Kind.TUPLE:
            return tuple(content)
        case _Kind.SET | _Kind.FROZEN_SET:
            items = (unpack(item) for item in content)
            return set(items) if kind == _Kind.SET else frozenset(items)
        case _Kind.COMPLEX:
            return complex(*content)
        case _Kind.SCALAR:
            return _array(content[0], [1], content[1])[0]
        case _Kind.ARRAY:
            return _array(*content).copy()
        case _Kind.TENSOR:
            return _tensor(*content)
        case _Kind.ORDERED | _Kind.COUNTER:
            return OrderedDict(content) if kind == _Kind.ORDERED else Counter(dict(content))
        case _Kind.DEQUE:
            return deque(content[1], content[0])
        case _:
            return torch.Size(content)


def _array(dtype: str, shape: list[int], data: bytes) -> Any:
    found = np.dtype(dtype)
    if found.kind not in _NUMPY_KINDS:
        raise ValueError(f"an array of {found}")
    _demand(shape, len(data), found.itemsize)
    return np.frombuffer(data, found).reshape(shape)


def _tensor(dtype: str, shape: list[int], data: bytes) -> torch.Tensor:
    found = DTYPES[dtype]
    _demand(shape, len(data), found.itemsize)
    if not data:
        return torch.empty(0, dtype=found).reshape(shape)
    return torch.frombuffer(bytearray(data), dtype=found).reshape(shape)


def _demand(shape: list[int], size: int, item: int) -> None:
    if min(shape, default=0) < 0 or max(shape, default=0) > _LONGEST or math.prod(shape) * item != size:
        raise ValueError(f"{size} bytes for a shape of {len(shape)} dimensions")


def _culprit(value: object, path: str = "", depth: int = 0) -> str:
    """Where in ``value`` it is that cannot travel, and what it is."""
    if depth > 32:
        return f"{path}: it is nested too deeply, or holds itself"
    for place, inner in _inside(value):
        try:
            _packed(inner)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return _culprit(inner, f"{path}[{place}]", depth + 1)
    return f"{path}: {_told(value)}" if path else _told(value)


def _inside(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"{key!r}"[:40], inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | deque):
        yield from ((str(place), inner) for place, inner in enumerate(value))


def _told(value: object) -> str:
    kind = type(value)
    if isinstance(value, torch.Tensor) and value.requires_grad:
        return "a tensor that requires grad; give its .detach(), or its number"
    if isinstance(value, torch.Tensor):
        return (
            f"a tensor that is {value.layout}, {value.dtype} and on {value.device}; only dense ones on the CPU travel"
        )
    own = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"a {own}{kind.__qualname__}"
