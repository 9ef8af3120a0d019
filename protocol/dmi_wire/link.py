"""The connection that a node speaks to one peer on: a CURVE DEALER of its own, so that its loss is known at once."""

import asyncio
import time
from collections.abc import Callable

import zmq
import zmq.asyncio

from dmi_protocol import limits
from dmi_protocol.identity import PublicKey
from dmi_wire.keys import KeyPair

_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1_000
_HANDSHAKE_MS = 5_000
_HEARTBEAT_MS = 10_000
"""libzmq's own heartbeat, for a host that vanishes without closing its connections; the protocols are faster."""
_REFUSED_S = 0.05
"""After a refusal libzmq gives up; a newcomer's admission may only be on its way, so we do not. Doubled each time."""
_REFUSED_MAX_S = 5.0
_LOOK_S = 0.02
_WRITABLE_S, _WRITABLE_TRIES = 0.001, 1_000
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH

Notify = Callable[[], None]


class Link:
    """Speaks to ``address``, whose key must be ``server``. Nothing is queued while there is no connection."""

    def __init__(self, context: zmq.asyncio.Context, keys: KeyPair, address: str, server: PublicKey) -> None:
        self._context = context
        self.dropped = 0
        """Messages that could not be given to the socket."""
        self.turned_away = 0
        """How often the other end did not take our key; counted by ``watch``."""
        self._socket: zmq.Socket[bytes] = zmq.Socket(zmq.Context(context), zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, limits.MESH_QUEUE_MESSAGES),
            (zmq.RCVHWM, limits.MESH_QUEUE_MESSAGES),
            (zmq.MAXMSGSIZE, limits.MESSAGE_BYTES),
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 2 * _HEARTBEAT_MS),
        ):
            self._socket.setsockopt(option, value)
        self._socket.curve_publickey = keys.public.encode("ascii")
        self._socket.curve_secretkey = keys.secret.encode("ascii")
        self._socket.curve_serverkey = server.encode("ascii")
        self._monitor = f"inproc://link-{id(self)}"
        self._socket.monitor(self._monitor, _EVENTS)
        self._events = context.socket(zmq.PAIR)
        self._events.linger = 0
        self._events.connect(self._monitor)
        self._address = f"tcp://{address}"
        self._socket.connect(self._address)

    async def watch(self, connected: Notify, disconnected: Notify, turned_away: Notify = lambda: None) -> None:
        """Call ``connected`` when the handshake is done, ``disconnected`` when it is undone, and ``turned_away`` each time
        that our key is not taken; until cancelled."""
        pause = _REFUSED_S
        while True:
            event, _ = await self._events.recv_multipart()
            number = int.from_bytes(event[:2], "little")
            if number == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                pause = _REFUSED_S
                await self._writable()
                connected()
            elif number == zmq.EVENT_DISCONNECTED:
                disconnected()
            else:
                self.turned_away += 1
                turned_away()
                await asyncio.sleep(pause)
                pause = min(_REFUSED_MAX_S, 2 * pause)
                self.redial()

    def redial(self) -> None:
        """Give the connection up, and make it anew."""
        self._socket.disconnect(self._address)
        self._socket.connect(self._address)

    async def _writable(self) -> None:
        """The handshake is told a moment before the socket can be written; what is sent in between would be dropped."""
        for _ in range(_WRITABLE_TRIES):
            if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
                return
            await asyncio.sleep(_WRITABLE_S)

    def send(self, frame: bytes) -> None:
        """Give ``frame`` to the network, or drop it when there is no connection or no room."""
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self.dropped += 1

    async def receive(self, within_s: float) -> bytes | None:
        """An answer on this very connection: only those get one who have no listener of their own."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                return self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(_LOOK_S)
        return None

    def close(self, linger_ms: int = 0) -> None:
        """End the connection; what was sent before may still leave for so long."""
        self._socket.disable_monitor()
        self._events.close()
        self._socket.close(linger_ms)
