"""Inputs as bytes, from process to process: msgpack, with arrays, large integers, moments and bad inputs beside what msgpack
knows. Nothing is ever unpickled: what a pack holds can only become data."""

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import numpy as np
from numpy.lib import format as npy

from dmi.errors import UsageError
from dmi.infer.inputs import Bad, Given

_ARRAY, _INTEGER, _BAD, _TEXT = 1, 2, 3, 4
_SURROGATES = "surrogatepass"
"""A name that is no UTF-8 is a text with such letters."""
_BY_TEXT: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "Decimal": Decimal,
}


def packed(inputs: Sequence[Given]) -> bytes:
    """These inputs. Raises ``UsageError`` for a value that has no form here."""
    plain = [[given.id, given.value] for given in inputs]
    return bytes(msgpack.packb(plain, default=_special, unicode_errors=_SURROGATES))


def unpacked(data: bytes | bytearray) -> list[Given]:
    """The same inputs."""
    found = msgpack.unpackb(data, ext_hook=_made, strict_map_key=False, unicode_errors=_SURROGATES)
    return [Given(*each) for each in found]


def _special(value: Any) -> msgpack.ExtType:
    match value:
        case np.ndarray():
            head = [npy.dtype_to_descr(value.dtype), list(value.shape), np.ascontiguousarray(value).tobytes()]
            return msgpack.ExtType(_ARRAY, msgpack.packb(head))
        case int():  # more than 64 bits
            return msgpack.ExtType(_INTEGER, str(value).encode())
        case Bad():
            return msgpack.ExtType(_BAD, str(value).encode("utf-8", _SURROGATES))
        case timedelta():
            return _text("timedelta", f"{value.days} {value.seconds} {value.microseconds}")
        case datetime() if isinstance(value.tzinfo, ZoneInfo):
            return _text(f"datetime@{value.tzinfo.key}@{value.fold}", value.replace(tzinfo=None).isoformat())
        case datetime() if value.tzinfo is None or isinstance(value.tzinfo, timezone):
            return _text("datetime", value.isoformat())
        case Decimal():
            return _text("Decimal", str(value))
        case date() | time() if not isinstance(value, datetime) and getattr(value, "tzinfo", None) is None:
            return _text(type(value).__name__, value.isoformat())
    raise UsageError(f"an input has a value of type {type(value).__name__}, which cannot be sent: leave its column out")


def _text(kind: str, text: str) -> msgpack.ExtType:
    return msgpack.ExtType(_TEXT, f"{kind}|{text}".encode())


def _made(code: int, data: bytes) -> Any:
    if code == _ARRAY:
        descr, shape, numbers = msgpack.unpackb(data)
        form: Any = descr if isinstance(descr, str) else [tuple(each) for each in descr]
        return np.frombuffer(numbers, npy.descr_to_dtype(form)).reshape(shape)
    if code == _INTEGER:
        return int(data)
    if code == _BAD:
        return Bad(data.decode("utf-8", _SURROGATES))
    kind, _, text = data.decode().partition("|")
    name, _, zone = kind.partition("@")
    if name == "timedelta":
        return timedelta(*map(int, text.split()))
    found = _BY_TEXT[name](text)
    if not zone:
        return found
    key, _, fold = zone.partition("@")
    return found.replace(tzinfo=ZoneInfo(key), fold=int(fold))
