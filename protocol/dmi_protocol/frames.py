"""A message of several frames: the envelope, and the raw payload that it describes, checked against each other."""

import zlib
from collections.abc import Sequence

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.tensor_spec import TensorSpec


def check_payload(specs: Sequence[TensorSpec], frames: Sequence[memoryview]) -> None:
    """Raise ``RemoteProtocolError`` unless there is exactly one frame for each spec, of its length and checksum."""
    if len(specs) != len(frames):
        raise RemoteProtocolError(f"{len(frames)} tensor frames where {len(specs)} are described")
    for spec, frame in zip(specs, frames, strict=True):
        spec.check()
        if frame.nbytes != spec.length_bytes:
            raise RemoteProtocolError(f"a tensor frame of {frame.nbytes} bytes where {spec.length_bytes} are described")
        if spec.checksum is not None and zlib.crc32(frame) != spec.checksum:
            raise RemoteProtocolError("a tensor frame does not have the checksum that its envelope names")
