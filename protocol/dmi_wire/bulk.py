"""Blocking data sockets between role processes: CURVE, checked keys, frames that nobody copies.

A server binds one ``DataListener``; each peer opens one ``DataConnection`` to it. Blocking sockets are faster here than asyncio
ones,
and a role process has nothing else to do. A message is one msgpack envelope and the raw frames that it describes.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import zmq
from msgspec import Struct
from zmq.utils import z85

from dmi_protocol import limits
from dmi_protocol.codec import open_envelope, seal
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.data import DataMessage
from dmi_wire.keys import KeyPair

Buffer = memoryview | bytes
Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_DOMAIN = b"dmi-data"
_HANDSHAKE_MS = 5_000
"""Whoever was not let in by then tries again."""
_HEARTBEAT_MS = 5_000
_UNDECIDED_S = 3.0
_UNDECIDED = 256


def _key_of(asked: Sequence[bytes]) -> PublicKey | None:
    """Whose key a question of authentication is about; None when it makes no sense."""
    if len(asked) != 9 or asked[4] != _DOMAIN or asked[7] != b"CURVE":
        return None
    return PublicKey(z85.encode(asked[8]).decode("ascii"))


class Delivery(Struct, frozen=True):
    """What came: who sent it (its name in the roster), the message, and the frames in zmq's own memory, writable."""

    sender: bytes
    message: DataMessage
    frames: tuple[memoryview, ...]


def _prepare(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, limits.DATA_QUEUE_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, limits.DATA_QUEUE_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.TENSOR_FRAME_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)


def _open(parts: Sequence[zmq.Frame]) -> tuple[DataMessage, tuple[memoryview, ...]]:
    """The message and its frames; ``RemoteProtocolError`` for anything else."""
    if not parts or len(parts[0].buffer) > limits.MESSAGE_BYTES:
        raise RemoteProtocolError("a data message without an envelope, or with one that is too large")
    message: DataMessage = open_envelope(parts[0].bytes, DataMessage)
    return message, tuple(part.buffer for part in parts[1:])


def _parts(message: DataMessage, frames: Iterable[Buffer]) -> list[Buffer]:
    return [seal(message), *frames]


class DataListener:
    """The bound end. Nobody is let in before ``admit`` has said who may come, and then nobody else."""

    def __init__(self, context: Context, keys: KeyPair, host: str, ports: tuple[int, int]) -> None:
        """Bind the first free port of ``ports`` (first, last) on ``host``; ``OSError`` when there is none.

        One context can hold one listener, because it answers the context's questions of authentication.
        """
        self._admitted: Mapping[PublicKey, bytes] = {}
        self.refused = 0
        self._undecided: list[tuple[float, list[bytes]]] = []
        """Questions about keys that are not admitted, and since when they wait."""
        self._zap = context.socket(zmq.ROUTER)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP_ADDRESS)
        self.socket = context.socket(zmq.ROUTER)
        _prepare(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode("ascii"))
        self.socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        try:
            self.address = self._bind(host, ports)
        except OSError:
            self.close()
            raise

    def _bind(self, host: str, ports: tuple[int, int]) -> str:
        for port in range(ports[0], ports[1] + 1):
            try:
                self.socket.bind(f"tcp://{host}:{port}")
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise OSError(f"cannot bind {host}:{port}: {error}") from error
            else:
                return f"{host}:{self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(':')[2]}"
        raise OSError(f"no free port on {host} from {ports[0]} to {ports[1]}")

    def admit(self, peers: Mapping[PublicKey, bytes]) -> None:
        """From now on these keys, under these names, and no others, may speak; on open connections too."""
        self._admitted = dict(peers)

    def register(self, poller: zmq.Poller) -> None:
        """Poll for what ``authenticate`` and ``receive`` handle."""
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self.socket, zmq.POLLIN)

    def authenticate(self) -> None:
        """Answer the waiting questions of authentication (ZAP, RFC 27). Who is not admitted may be in the next roster, and
        have heard of it before us, so it is refused only after a while, and may ask again."""
        now = time.monotonic()
        while self._zap.poll(0):
            self._undecided.append((now, self._zap.recv_multipart()))
        still: list[tuple[float, list[bytes]]] = []
        for since, asked in self._undecided:
            key = _key_of(asked)
            if key is not None and key in self._admitted:
                self._answer(asked, b"200", key.encode("ascii"))
            elif key is None or now - since > _UNDECIDED_S or len(self._undecided) > _UNDECIDED:
                self.refused += 1
                self._answer(asked, b"300", b"")  # for now: a 400 would be for good, and the roster may only be late
            else:
                still.append((since, asked))
        self._undecided = still

    def _answer(self, asked: Sequence[bytes], status: bytes, user: bytes) -> None:
        identity, empty, version, sequence = asked[:4]
        text = b"" if user else b"not in the roster"
        self._zap.send_multipart([identity, empty, version, sequence, status, text, user, b""])

    def receive(self) -> Delivery | None:
        """The next message, or None when nothing waits. What is not from its sender, or no message, raises
        ``RemoteProtocolError`` and is gone."""
        try:
            parts = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        name = parts[0].bytes
        key = PublicKey(str(parts[0].get("User-Id")))
        if self._admitted.get(key) != name.partition(b"/")[0]:
            self.refused += 1
            raise RemoteProtocolError(f"a message under the name {name!r} that is not its sender's")
        message, frames = _open(parts[1:])
        return Delivery(name, message, frames)

    def send(self, to: bytes, message: DataMessage, frames: Iterable[Buffer] = ()) -> zmq.MessageTracker | None:
        """Send without waiting. The frames must not be written before the tracker is done.

        None when the peer is not connected. The queue is bounded by what may be under way in two steps, so a full one
        is our own fault, and raises ``zmq.Again``.
        """
        try:
            return self.socket.send_multipart([to, *_parts(message, frames)], zmq.NOBLOCK, copy=False, track=True)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return None
            raise

    def close(self, linger_ms: int = 0) -> None:
        """Give the port back; the context's ``term`` then waits for what is still to be sent, up to ``linger_ms``."""
        self.socket.close(linger_ms)
        self._zap.close()


class DataConnection:
    """The connecting end: one per server."""

    def __init__(
        self, context: Context, keys: KeyPair, name: bytes, address: str, server: PublicKey, *, is_kept: bool = True
    ) -> None:
        """What is sent while there is no connection waits for one, where it ``is_kept``. Where it is not, sending is refused, and
        ``connect`` is called by whoever watches the socket first."""
        self.socket = context.socket(zmq.DEALER)
        _prepare(self.socket)
        self.socket.setsockopt(zmq.ROUTING_ID, name)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode("ascii"))
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode("ascii"))
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode("ascii"))
        self.socket.setsockopt(zmq.IMMEDIATE, int(not is_kept))
        self._address = f"tcp://{address}"
        if is_kept:
            self.connect()

    def connect(self) -> None:
        """Begin to connect, and connect again whenever the connection breaks."""
        self.socket.connect(self._address)

    def send(self, message: DataMessage, frames: Iterable[Buffer] = ()) -> zmq.MessageTracker:
        """Send without waiting; ``zmq.Again`` where it cannot be. The frames must not be written before the tracker is done."""
        tracker = self.socket.send_multipart(_parts(message, frames), zmq.NOBLOCK, copy=False, track=True)
        assert tracker is not None
        return tracker

    def receive(self, timeout_ms: int = 0) -> tuple[DataMessage, tuple[memoryview, ...]] | None:
        """The next message, or None when none came in time."""
        if not self.socket.poll(timeout_ms):
            return None
        return _open(self.socket.recv_multipart(zmq.NOBLOCK, copy=False))

    def close(self, linger_ms: int = 0) -> None:
        """End the connection; what was not sent yet is dropped, or gets so much time."""
        self.socket.close(linger_ms)
