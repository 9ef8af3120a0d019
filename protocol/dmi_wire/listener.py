"""The one port that a node hears on: a CURVE ROUTER whose every message says which key sent it."""

from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio
from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.identity import PublicKey
from dmi_wire.keys import KeyPair

_HANDSHAKE_MS = 5_000
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class Heard(Struct, frozen=True):
    """One message: the key that sent it, the way back to it, and its frames."""

    key: PublicKey
    way_back: bytes
    frames: tuple[bytes, ...]


class Listener:
    """Bind with ``bind``; messages come from ``receive``. Who may connect is the gatekeeper's to say; whether a message
    still counts is the caller's, for every single one, so that a key can be revoked on an open connection."""

    def __init__(self, context: zmq.asyncio.Context, keys: KeyPair, domain: str) -> None:
        self._context = context
        self._socket = context.socket(zmq.ROUTER)
        options: list[tuple[int, Any]] = [
            (zmq.LINGER, 0),
            (zmq.RCVHWM, limits.MESH_QUEUE_MESSAGES),
            (zmq.SNDHWM, limits.MESH_QUEUE_MESSAGES),
            (zmq.MAXMSGSIZE, limits.MESSAGE_BYTES),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.CURVE_SERVER, 1),
            (zmq.CURVE_SECRETKEY, keys.secret.encode("ascii")),
            (zmq.ZAP_DOMAIN, domain.encode("ascii")),
            (zmq.ZAP_ENFORCE_DOMAIN, 1),
        ]
        for option, value in options:
            self._socket.setsockopt(option, value)

    def bind(self, host: str, port: int) -> int:
        """Listen on ``host``; port 0 takes any free one. Gives the port. Raises ``OSError`` that names the address."""
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
        return int(self._socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    async def receive(self) -> Heard:
        """The next message."""
        parts = await self._socket.recv_multipart(copy=False)
        key = PublicKey(str(parts[-1].get("User-Id")))
        return Heard(key, parts[0].bytes, tuple(part.bytes for part in parts[1:]))

    def answer(self, heard: Heard, frame: bytes) -> None:
        """Reply to one that has no listener of its own. Dropped when it is gone, or does not read."""
        try:
            zmq.Socket.shadow(self._socket.underlying).send_multipart([heard.way_back, frame], zmq.NOBLOCK)
        except zmq.ZMQError:
            return

    async def watch(self, failed: Callable[[], None]) -> None:
        """Call ``failed`` for each connection that did not even get as far as showing a key; until cancelled."""
        address = f"inproc://listener-{id(self)}"
        self._socket.monitor(address, _FAILED)
        events = self._context.socket(zmq.PAIR)
        events.linger = 0
        events.connect(address)
        try:
            while True:
                await events.recv_multipart()
                failed()
        finally:
            events.close()
            if not self._socket.closed:
                self._socket.disable_monitor()

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()
