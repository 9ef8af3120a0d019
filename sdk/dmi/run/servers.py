"""A worker's connections to the parameter servers of its job, and shared memory with the one beside it."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import zmq
from msgspec import Struct

from dmi.run.beats import Beats
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import NodeId, PublicKey
from dmi_protocol.messages import parameters as say
from dmi_protocol.messages.roles import Roster, Seat
from dmi_wire.bulk import Buffer, Context, Line
from dmi_wire.keys import KeyPair
from dmi_wire.shared_memory import Segment

GiveUp = Callable[[str, str], NoReturn]
"""Ends the process with a kind of failure and a line for people."""


class Heard(Struct, frozen=True):
    """A message of a server, and its frames."""

    shard: int
    message: say.ParameterMessage
    frames: tuple[memoryview, ...]


class Servers:
    """Sends to the shards and hears from them. Every wait ends: with a message, or with the name of who is silent."""

    def __init__(
        self, context: Context, keys: KeyPair, worker: int, node: NodeId, roster: Roster, give_up: GiveUp
    ) -> None:
        self._roster = roster
        self._give_up = give_up
        self._seats: Mapping[int, Seat] = {
            shard: next(seat for seat in roster.servers if seat.key.index == index)
            for shard, index in enumerate(roster.shards)
        }
        self._lines = {
            shard: Line(context, keys, b"worker-%d" % worker, seat.address, PublicKey(seat.public_key))
            for shard, seat in self._seats.items()
        }
        self._beats = Beats(context, keys, worker, roster.generation, self._seats)
        self._poller = zmq.Poller()
        for line in self._lines.values():
            self._poller.register(line.socket, zmq.POLLIN)
        self._of_socket = {line.socket: shard for shard, line in self._lines.items()}
        self.local = frozenset(shard for shard, seat in self._seats.items() if seat.node == node)
        self._segments: dict[tuple[int, str], Segment] = {}
        self._waiting: list[Heard] = []

    @property
    def shards(self) -> Iterable[int]:
        """All shards, in order."""
        return self._lines.keys()

    def name(self, shard: int) -> str:
        """The server of a shard, for people."""
        seat = self._seats[shard]
        return f"server-{seat.key.index}@{seat.node_name}"

    def send(self, shard: int, message: say.ParameterMessage, frames: Iterable[Buffer] = ()) -> zmq.MessageTracker:
        """Send without waiting; the frames must not be written before the tracker is done."""
        return self._lines[shard].send(message, frames)

    def send_all(self, message: say.ParameterMessage) -> None:
        """The same to every shard."""
        for line in self._lines.values():
            line.send(message)

    def attach(self, shard: int, name: str, size: int) -> None:
        """Map what the server beside us offers."""
        self._segments[shard, name] = Segment.attach(name, size)

    def shared(self, shard: int, region: say.Region, length: int) -> memoryview:
        """Bytes that the server beside us has written."""
        segment = self._segments.get((shard, region.segment))
        if segment is None:
            raise RemoteProtocolError(f"{self.name(shard)} speaks of shared memory that it has not offered")
        return segment.view(region.offset, length)

    def hear(self, patience_s: float, what: str) -> Heard | None:
        """The next message. None when none came for ``patience_s`` although all servers are there.

        A server that is silent for too long ends the process; ``what`` we waited for is in the reason.
        """
        deadline = time.monotonic() + patience_s
        while not self._waiting:
            self._look(min(1.0, patience_s))
            silent = self._beats.silent()
            if silent is not None:
                shard, seconds = silent
                self._give_up("peer-silent", f"{self.name(shard)} was not heard for {seconds:.0f} s {what}")
            if not self._waiting and time.monotonic() > deadline:
                return None
        return self._waiting.pop(0)

    def _look(self, seconds: float) -> None:
        for socket, _ in self._poller.poll(int(seconds * 1000)):
            shard = self._of_socket[socket]
            try:
                heard = self._lines[shard].receive()
            except RemoteProtocolError as error:
                self._give_up("peer-broken", f"{self.name(shard)} sends what is no message: {error}")
            if heard is not None:
                self._waiting.append(Heard(shard, *heard))

    def close(self) -> None:
        """End all connections."""
        self._beats.close()
        for line in self._lines.values():
            line.close()


PATIENCE_S = limits.PEER_SILENT_MS / 1000
"""After so long without news from servers that are there, what may have been lost is said again."""
