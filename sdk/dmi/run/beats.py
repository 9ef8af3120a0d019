"""Says to the servers that this worker is here, while its script computes, and notes when they answer."""

import threading
import time
from collections.abc import Mapping

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.parameters import Beat
from dmi_protocol.messages.roles import Endpoint
from dmi_wire.bulk import Context, DataConnection
from dmi_wire.keys import KeyPair


class Beats:
    """A thread with its own line to each server, since a socket belongs to one thread."""

    def __init__(self, context: Context, keys: KeyPair, worker: int) -> None:
        self._context, self._keys = context, keys
        self._name = b"worker-%d/beat" % worker
        self._beat = Beat(0)
        self._servers: Mapping[int, Endpoint] = {}
        self._heard: dict[int, float] = {}
        self._looked_at = time.monotonic()
        """What was not looked for cannot be said to be silent: the script may have kept this thread from running."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="beats", daemon=True)
        self._thread.start()

    def watch(self, generation: int, servers: Mapping[int, Endpoint]) -> None:
        """From now on these, by their indices."""
        now = time.monotonic()
        self._heard = {index: self._heard.get(index, now) for index in servers}
        self._beat, self._servers = Beat(generation), dict(servers)

    def silent_ms(self) -> dict[int, int]:
        """For how long each server was not heard, in milliseconds."""
        return {server: max(0, int(1000 * (self._looked_at - at))) for server, at in self._heard.items()}

    def close(self) -> None:
        """End the thread and its lines."""
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        lines: dict[int, DataConnection] = {}
        while not self._over.wait(limits.PEER_BEAT_MS / 1000):
            servers = self._servers
            for gone in lines.keys() - servers.keys():
                lines.pop(gone).close()
            for index, endpoint in servers.items():
                if index not in lines:
                    key = PublicKey(endpoint.public_key)
                    lines[index] = DataConnection(self._context, self._keys, self._name, endpoint.address, key)
                self._one(index, lines[index])
            self._looked_at = time.monotonic()
        for line in lines.values():
            line.close()

    def _one(self, index: int, line: DataConnection) -> None:
        """Hear what came, and beat; while the server is away a few beats wait and no more are made."""
        heard = self._heard  # whoever watches others from now on has made another one
        try:
            while line.receive() is not None:
                if index in heard:
                    heard[index] = time.monotonic()
        except RemoteProtocolError:
            return
        if time.monotonic() - heard.get(index, 0.0) < limits.PEER_SILENT_MS / 1000:
            line.send(self._beat)
