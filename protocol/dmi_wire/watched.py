"""A data connection that tells when it was made, and when it broke: over such a one replicas are asked."""

from collections.abc import Iterable, Iterator

import zmq
from zmq.utils.monitor import recv_monitor_message

from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.data import DataMessage
from dmi_wire.bulk import Buffer, Context, DataConnection
from dmi_wire.keys import KeyPair

_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class WatchedConnection:
    """``name`` is ours; ``address`` and ``peer`` are those of the other end. ``socket`` and ``monitor`` can be polled."""

    def __init__(self, context: Context, keys: KeyPair, name: bytes, address: str, peer: PublicKey) -> None:
        self._connection = DataConnection(context, keys, name, address, peer, is_kept=False)
        self.socket = self._connection.socket
        self.monitor = self.socket.get_monitor_socket(_WATCHED)
        self._connection.connect()

    def news(self) -> Iterator[bool]:
        """What has happened to the connection: True where it was made, False where it broke."""
        while can_be_read(self.monitor):
            yield recv_monitor_message(self.monitor, zmq.NOBLOCK)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def receive(self) -> tuple[DataMessage, tuple[memoryview, ...]] | None:
        """The next message, or None when nothing waits. Raises ``RemoteProtocolError`` for nonsense."""
        return self._connection.receive()

    def send(self, message: DataMessage, frames: Iterable[Buffer] = ()) -> bool:
        """Without waiting; False where it cannot be sent, for there is no connection."""
        try:
            self._connection.send(message, frames)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Gone, with all that was not sent."""
        self.socket.disable_monitor()
        self._connection.close()


def can_be_read(socket: "zmq.Socket[bytes]") -> bool:
    """Does a message wait there?"""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
