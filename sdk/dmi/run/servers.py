"""A worker's connections to the parameter servers of its job, and shared memory with the one beside it."""

import time
from collections.abc import Callable, Iterable
from typing import NoReturn

import zmq
from msgspec import Struct

from dmi.run.beats import Beats
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import NodeId, PublicKey
from dmi_protocol.messages import parameters as say
from dmi_protocol.messages.roles import Endpoint, Role, Roster
from dmi_protocol.training.silence import Silences
from dmi_wire.bulk import Buffer, Context, DataConnection
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from dmi_wire.shared_memory import Segment

GiveUp = Callable[[str, str], NoReturn]
"""Ends the process with a kind of failure and a line for people."""


class Heard(Struct, frozen=True):
    """A message of a server, and its frames. ``shard`` is that which it speaks of, and ``server`` who it is."""

    server: int
    shard: int
    message: say.ParameterMessage
    frames: tuple[memoryview, ...]


class Servers:
    """Sends to the primaries of the shards and hears from all servers. Every wait ends: with a message, with a new roster,
    or with the name of who is silent."""

    def __init__(
        self, context: Context, keys: KeyPair, worker: int, node: NodeId, child: Child, give_up: GiveUp
    ) -> None:
        self._context, self._keys, self._worker, self._node = context, keys, worker, node
        self._child = child
        self._give_up = give_up
        self._endpoints: dict[int, Endpoint] = {}
        self._lines: dict[int, DataConnection] = {}
        self._primaries: tuple[int, ...] = ()
        self._beats = Beats(context, keys, worker)
        self._poller = zmq.Poller()
        self._poller.register(child.fd, zmq.POLLIN)
        self._of_socket: dict[object, int] = {}
        self._segments: dict[tuple[int, str], Segment] = {}
        self._waiting: list[Heard] = []
        self._talked: dict[int, float] = {}
        """By server: when it last said anything but that it is there."""
        self._asked: dict[int, float] = {}
        """By server: when it was last asked again."""
        self._silences = Silences()

    def follow(self, roster: Roster) -> tuple[int, ...]:
        """From now on these; gives the shards that have another primary than before."""
        endpoints = {endpoint.key.index: endpoint for endpoint in roster.servers}
        for gone in self._lines.keys() - endpoints.keys():
            line = self._lines.pop(gone)
            self._poller.unregister(line.socket)
            del self._of_socket[line.socket]
            line.close()
        for index, endpoint in endpoints.items():
            if index not in self._lines:
                key = PublicKey(endpoint.public_key)
                line = DataConnection(self._context, self._keys, b"worker-%d" % self._worker, endpoint.address, key)
                self._lines[index] = line
                self._of_socket[line.socket] = index
                self._poller.register(line.socket, zmq.POLLIN)
        self._endpoints, self._generation = endpoints, roster.generation
        now = time.monotonic()
        self._talked = {index: self._talked.get(index, now) for index in endpoints}
        self._asked = {index: self._asked.get(index, now) for index in endpoints}
        before, self._primaries = self._primaries, tuple(replicas.primary for replicas in roster.assignment.shards)
        self._beats.watch(roster.generation, {index: endpoints[index] for index in set(self._primaries)})
        return tuple(s for s, index in enumerate(self._primaries) if before[s : s + 1] != (index,))

    @property
    def shards(self) -> Iterable[int]:
        """All shards, in order."""
        return range(len(self._primaries))

    def is_local(self, shard: int) -> bool:
        """Is the shard's primary on our node?"""
        return self._endpoints[self._primaries[shard]].node == self._node

    def is_primary(self, heard: Heard) -> bool:
        """Does the shard's primary say so itself?"""
        return self._primaries[heard.shard : heard.shard + 1] == (heard.server,)

    def name(self, shard: int) -> str:
        """The primary of a shard, for people."""
        return self.server_name(self._primaries[shard])

    def server_name(self, server: int) -> str:
        """A server, for people."""
        endpoint = self._endpoints[server]
        return f"server-{endpoint.key.index}@{endpoint.node_name}"

    def quiet(self, seconds: float) -> tuple[int, ...]:
        """The shards whose primary has said nothing for so long, each at most as often: what we wait for may be lost."""
        now = time.monotonic()
        quiet = [i for i in set(self._primaries) if now - max(self._talked[i], self._asked[i]) >= seconds]
        self._asked |= dict.fromkeys(quiet, now)
        return tuple(shard for shard, index in enumerate(self._primaries) if index in quiet)

    def begin_waiting(self) -> None:
        """We have just said something: nobody is quiet yet."""
        now = time.monotonic()
        self._asked = dict.fromkeys(self._endpoints, now)

    def send(self, shard: int, message: say.ParameterMessage, frames: Iterable[Buffer] = ()) -> zmq.MessageTracker:
        """Send without waiting; the frames must not be written before the tracker is done."""
        return self._lines[self._primaries[shard]].send(message, frames)

    def attach(self, shard: int, name: str, size: int) -> None:
        """Map what the server beside us offers."""
        self._segments[shard, name] = Segment.attach(name, size)

    def shared(self, shard: int, region: say.Region, length: int) -> memoryview:
        """Bytes that the server beside us has written."""
        segment = self._segments.get((shard, region.segment))
        if segment is None:
            raise RemoteProtocolError(f"{self.name(shard)} speaks of shared memory that it has not offered")
        return segment.view(region.offset, length)

    def hear(self, patience_s: float, what: str) -> Heard | Roster | None:
        """The next message, or a new roster. None when neither came for ``patience_s`` although all servers are there.

        A server that is silent for too long ends the process; ``what`` we waited for is in the reason.
        """
        deadline = time.monotonic() + patience_s
        while not self._waiting:
            if (roster := self._child.newest()) is not None:
                return roster
            self._look(min(1.0, patience_s))
            self._mind_silence(what)
            if not self._waiting and time.monotonic() > deadline:
                return None
        return self._waiting.pop(0)

    def _mind_silence(self, what: str) -> None:
        """A server that is not heard is reported, so that one of us is replaced; in the end we give up."""
        silent = self._beats.silent_ms()
        for server, silence in silent.items():
            if silence > limits.PEER_SILENT_MS:
                told = f"{self.server_name(server)} was not heard for {silence / 1000:.0f} s {what}"
                self._give_up("peer-silent", told)
        silences: dict[tuple[Role, int], int] = {("server", server): silence for server, silence in silent.items()}
        for report in self._silences.look(self._generation, silences):
            self._child.tell(report)

    def _look(self, seconds: float) -> None:
        for socket, _ in self._poller.poll(int(seconds * 1000)):
            server = self._of_socket.get(socket)
            if server is None:
                continue
            try:
                heard = self._lines[server].receive()
            except RemoteProtocolError as error:
                self._give_up("peer-broken", f"{self.server_name(server)} sends what is no message: {error}")
            if heard is not None:
                message, frames = heard
                if not isinstance(message, say.ParameterMessage):
                    self._give_up("peer-broken", f"{self.server_name(server)} speaks of another kind of job")
                self._talked[server] = time.monotonic()
                self._waiting.append(Heard(server, getattr(message, "shard", -1), message, frames))

    def close(self) -> None:
        """End all connections."""
        self._beats.close()
        for line in self._lines.values():
            line.close()
