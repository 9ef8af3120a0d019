"""Messages to bytes and back. Any bytes at all give a message or ``RemoteProtocolError``.

What the bytes claim is counted and bounded before memory is taken for it; then msgpack unpacks, and msgspec turns the plain
value into a typed, validated struct.
"""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgpack
import msgspec

from dmi_protocol import limits
from dmi_protocol.claims import check_claims
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.version import PROTOCOL, check_version

Value = TypeVar("Value")


def pack(value: object) -> bytes:
    """The msgpack of a struct, or of plain values that may hold structs."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)), use_bin_type=True)
    return packed


def unpack(data: bytes | memoryview) -> Any:
    """The plain value in ``data``; raises ``RemoteProtocolError``."""
    if len(data) > limits.MESSAGE_BYTES:
        raise RemoteProtocolError(f"an envelope of {len(data)} bytes, more than {limits.MESSAGE_BYTES}")
    check_claims(data, limits.ENVELOPE_ITEMS)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.STRING_BYTES,
            max_bin_len=limits.MESSAGE_BYTES,
            max_array_len=limits.COLLECTION_ITEMS,
            max_map_len=limits.COLLECTION_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not msgpack within our bounds: {type(error).__name__}") from error


def encode_struct(value: msgspec.Struct) -> bytes:
    """One struct, without a version: for channels whose both ends are of one installation."""
    return pack(value)


def decode_struct(data: bytes | memoryview, kind: type[Value] | Any) -> Value | Any:
    """The struct of type ``kind`` (a struct or a tagged union) in ``data``; raises ``RemoteProtocolError``."""
    return convert(unpack(data), kind)


def convert(value: object, kind: type[Value] | Any) -> Value | Any:
    """A plain value as ``kind``, every field validated; raises ``RemoteProtocolError``."""
    try:
        return msgspec.convert((value,), _alone(cast(Hashable, kind))).value
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"not what was expected: {str(error)[:200]}") from error


@lru_cache(maxsize=256)
def _alone(kind: Hashable) -> Any:
    """A struct of nothing but a ``kind``: msgspec looks into a union anew at each call, and into a struct once."""
    return msgspec.defstruct("Alone", [("value", kind)], array_like=True)


def seal(message: msgspec.Struct) -> bytes:
    """An envelope: the protocol's version and the message."""
    return pack((PROTOCOL, message))


def open_envelope(data: bytes | memoryview, kind: type[Value] | Any) -> Value | Any:
    """The message of type ``kind`` in an envelope; raises ``RemoteProtocolError``."""
    plain = unpack(data)
    if not isinstance(plain, list) or len(plain) != 2:
        raise RemoteProtocolError("an envelope holds a version and a message")
    check_version(plain[0])
    return convert(plain[1], kind)
