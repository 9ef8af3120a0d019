"""Says to the servers that this worker is here, while its script computes, and notes when they answer."""

import threading
import time
from collections.abc import Mapping

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.parameters import Beat
from dmi_protocol.messages.roles import Seat
from dmi_wire.bulk import Context, Line
from dmi_wire.keys import KeyPair


class Beats:
    """A thread with its own line to each server, since a socket belongs to one thread."""

    def __init__(
        self, context: Context, keys: KeyPair, worker: int, generation: int, servers: Mapping[int, Seat]
    ) -> None:
        self._context, self._keys, self._servers = context, keys, servers
        self._name = b"worker-%d/beat" % worker
        self._beat = Beat(generation)
        self._heard = dict.fromkeys(servers, time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="beats", daemon=True)
        self._thread.start()

    def silent(self) -> tuple[int, float] | None:
        """The server that was not heard for longest, and for how many seconds, when that is too long."""
        server = min(self._heard, key=lambda index: self._heard[index])
        seconds = time.monotonic() - self._heard[server]
        return (server, seconds) if seconds * 1000 > limits.PEER_SILENT_MS else None

    def close(self) -> None:
        """End the thread and its lines."""
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        lines = {
            index: Line(self._context, self._keys, self._name, seat.address, PublicKey(seat.public_key))
            for index, seat in self._servers.items()
        }
        while not self._over.wait(limits.PEER_BEAT_MS / 1000):
            for index, line in lines.items():
                self._one(index, line)
        for line in lines.values():
            line.close()

    def _one(self, index: int, line: Line) -> None:
        """Hear what came, and beat; while the server is away a few beats wait and no more are made."""
        try:
            while line.receive() is not None:
                self._heard[index] = time.monotonic()
        except RemoteProtocolError:
            return
        if time.monotonic() - self._heard[index] < limits.PEER_SILENT_MS / 1000:
            line.send(self._beat)
