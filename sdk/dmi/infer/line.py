"""Between a replica and its child that computes: messages on a socket pair. Needs no torch."""

import select
import socket
import threading
from typing import Any

from dmi_protocol.codec import pack, unpack
from dmi_wire.channel import framed, unframed

DESCRIPTOR = "DMI_COMPUTE_FD"
"""The environment variable that names the child's end."""


class GoneError(Exception):
    """The other end is closed."""


class Line:
    """One end. ``say`` may be called from any thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._saying = threading.Lock()

    def say(self, **value: Any) -> None:
        """One message. Raises ``GoneError``."""
        try:
            with self._saying:
                self._channel.sendall(framed(pack(value)))
        except OSError as error:
            raise GoneError from error

    def hear(self) -> dict[str, Any]:
        """The next message. Raises ``GoneError``."""
        found: dict[str, Any] = unpack(unframed(self._exactly))
        return found

    def is_quiet(self, for_s: float) -> bool:
        """Does nothing come within so long?"""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        return not poll.poll(for_s * 1000)

    def close(self) -> None:
        """The end of it."""
        self._channel.close()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._channel.recv(size - len(data))
            except OSError as error:
                raise GoneError from error
            if not piece:
                raise GoneError
            data += piece
        return bytes(data)
