"""What a raw tensor frame holds, said in the envelope before the frame: dtype, shape, length and checksum."""

import zlib

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError

ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes of one element, by torch's name of the dtype."""

DIMENSIONS = 64


class TensorSpec(Struct, frozen=True):
    """One tensor. ``checksum`` is the CRC-32 of its bytes, None where the link itself is authenticated (CURVE)."""

    dtype: str
    shape: tuple[int, ...]
    length_bytes: int
    checksum: int | None = None

    def check(self) -> None:
        """Raise ``RemoteProtocolError`` unless the claims agree with one another and with the limits."""
        if self.dtype not in ITEM_BYTES:
            raise RemoteProtocolError(f"unknown dtype {self.dtype[:40]!r}")
        if len(self.shape) > DIMENSIONS or any(size < 0 for size in self.shape):
            raise RemoteProtocolError(f"no tensor has the shape {self.shape[:8]}")
        length = ITEM_BYTES[self.dtype]
        for size in self.shape:
            length *= size
        if length != self.length_bytes or length > limits.TENSOR_FRAME_BYTES:
            raise RemoteProtocolError(f"{self.length_bytes} bytes are claimed for {self.dtype} {self.shape[:8]}")


def describe(dtype: str, shape: tuple[int, ...], data: memoryview | None = None) -> TensorSpec:
    """The spec of a tensor; with ``data`` its checksum too. ``KeyError`` for a dtype that does not travel."""
    length = ITEM_BYTES[dtype]
    for size in shape:
        length *= size
    return TensorSpec(dtype, shape, length, None if data is None else zlib.crc32(data))
