"""Between a replica and its child that computes: messages on a socket pair. Needs no torch."""

import select
import socket
import threading
from typing import Any

import msgspec

from dmi_wire.channel import framed, unframed

DESCRIPTOR = "DMI_COMPUTE_FD"
"""The environment variable that names the child's end."""

_PIECE = 1 << 16
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
"""Both ends are of one installation and one user."""


class GoneError(Exception):
    """The other end is closed."""


class Line:
    """One end. ``say`` may be called from any thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._saying = threading.Lock()
        self._heard = bytearray()
        """What came with the last message, and is of the next ones."""
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def say(self, **value: Any) -> None:
        """One message. Raises ``GoneError``."""
        try:
            with self._saying:
                self._channel.sendall(framed(_encoder.encode(value)))
        except OSError as error:
            raise GoneError from error

    def hear(self) -> dict[str, Any]:
        """The next message. Raises ``GoneError``."""
        found: dict[str, Any] = _decoder.decode(unframed(self._exactly))
        return found

    def is_quiet(self, for_s: float) -> bool:
        """Does nothing come within so long?"""
        return not self._heard and not self._poll.poll(for_s * 1000)

    def close(self) -> None:
        """The end of it."""
        self._channel.close()

    def _exactly(self, size: int) -> bytes:
        while len(self._heard) < size:
            try:
                piece = self._channel.recv(max(_PIECE, size - len(self._heard)))
            except OSError as error:
                raise GoneError from error
            if not piece:
                raise GoneError
            self._heard += piece
        data = bytes(self._heard[:size])
        del self._heard[:size]
        return data
