"""The parameter server's process: ``python -m dmi_node.roles.server``, a child of the daemon.

It has copies of shards (``replica.py``), and carries what others say to them. One thread does all of it; a second one only
talks to the daemon, a third one to the disk.
"""

import errno
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import zmq

from dmi_node.roles.replica import FromServer, ShardReplica
from dmi_node.roles.tensors import Tensors
from dmi_node.roles.writer import Writer
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages import parameters as say
from dmi_protocol.messages.roles import Bound, Completed, Endpoint, PartWritten, Role, Roster, TrainingLaunch
from dmi_protocol.training import exchange as x
from dmi_protocol.training.silence import Silences
from dmi_tensor.checkpoint import Part, read_part
from dmi_tensor.optimizers import warm_up
from dmi_wire.bulk import Buffer, DataConnection, DataListener, Delivery
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from dmi_wire.memory import keep_freed_memory

_POLL_MS = 1_000
_LOOK_MS = 250
"""How often it is looked who is silent, and said that we are not, whatever takes long."""
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


class Server:
    """The shards of one process, its socket, and its peers."""

    def __init__(
        self,
        child: Child,
        launch: TrainingLaunch,
        parts: tuple[Part, ...],
        listener: DataListener,
        context: "zmq.Context[zmq.Socket[bytes]]",
        keys: KeyPair,
    ) -> None:
        self.child = child
        self.directory = Path(launch.directory)
        self.writer = Writer()
        self._launch = launch
        self._listener, self._context, self._keys = listener, context, keys
        self._index = launch.key.index
        self._parts = parts
        self._copies: dict[int, ShardReplica] = {}
        self._lines: dict[int, DataConnection] = {}
        self._workers: dict[int, Endpoint] = {}
        self._heard: dict[int, Instant] = {}
        self._others: dict[int, Instant] = {}
        """When the other servers were heard last."""
        self._beat_at = self._looked_at = self._answered_at = Instant(0)
        self._heard_meanwhile: deque[Delivery] = deque()
        self._leased = child.lease
        self._own: deque[Delivery] = deque()
        """What shards of ours say to one another: it is heard when the one that speaks has done all it wants."""
        self._silences = Silences()
        self._has_said_done = False
        self._early: list[Delivery] = []
        """What belongs to a generation that we have not heard of yet."""

    def run(self, roster: Roster) -> NoReturn:
        """Serve until the process is ended: whoever waits for a last word asks again until it has come."""
        poller = zmq.Poller()
        self._listener.register(poller)
        poller.register(self.writer.fd, zmq.POLLIN)
        poller.register(self.child.fd, zmq.POLLIN)
        self._take_part(roster)
        while True:
            poller.poll(self._patience_ms())
            newer = self.child.newest()
            self._lease()
            if newer is not None and newer.generation > self.roster.generation:
                self._take_part(newer)
            self._listener.authenticate()
            self._hear_all()
            self._tell_written()
            self._look_at_clock()
            self._hear_own()
            self._say_done()

    def _say_done(self) -> None:
        led = [copy for copy in self._copies.values() if copy.is_primary]
        if not self._has_said_done and led and all(copy.is_done for copy in led):
            self._has_said_done = True
            self.child.tell(Completed())

    def _lease(self) -> None:
        """Nobody is shown anything new while this node does not know of a quorum."""
        if self.child.lease != self._leased:
            self._leased = self.child.lease
            for copy in self._copies.values():
                if copy.is_primary:
                    copy.happened(x.Leased(self._leased.until))

    def _patience_ms(self) -> int:
        if self._heard_meanwhile:
            return 0
        due = [deadline for copy in self._copies.values() if (deadline := copy.deadline()) is not None]
        return max(0, min([_POLL_MS, *(deadline - _now() for deadline in due)]))

    def _look_at_clock(self) -> None:
        for copy in self._copies.values():
            deadline = copy.deadline()
            if deadline is not None and _now() >= deadline:
                copy.waited()
        self._lose_patience()
        self._beat()

    # Who takes part

    def _take_part(self, roster: Roster) -> None:
        """A new generation: who may speak, whom we speak to, and what each shard is to us."""
        self.roster = roster
        self._workers = {endpoint.key.index: endpoint for endpoint in roster.workers}
        self._heard = {worker: self._heard.get(worker, _now()) for worker in self._workers}
        others = [endpoint for endpoint in roster.servers if endpoint.key.index != self._index]
        self._others = {endpoint.key.index: self._others.get(endpoint.key.index, _now()) for endpoint in others}
        peers = [*roster.workers, *others]
        self._listener.admit({PublicKey(endpoint.public_key): _name(endpoint) for endpoint in peers})
        for gone in self._lines.keys() - {endpoint.key.index for endpoint in others}:
            self._lines.pop(gone).close()
        for endpoint in others:
            if endpoint.key.index not in self._lines:
                name = b"server-%d" % self._index
                self._lines[endpoint.key.index] = DataConnection(
                    self._context, self._keys, name, endpoint.address, endpoint.public_key
                )
        for shard, replicas in enumerate(roster.assignment.shards):
            if replicas.primary == self._index:
                self._copy(shard, self._parts).become_primary(self._rostered(shard), x.Leased(self._leased.until))
            elif self._index not in (*replicas.backups, *replicas.filling):
                self._copies.pop(shard, None)
        self._parts = ()
        early, self._early = self._early, []
        for delivery in early:
            self._take_or_refuse(delivery)

    def _rostered(self, shard: int) -> x.Rostered:
        assignment, replicas = self.roster.assignment, self.roster.assignment.shards[shard]
        joiners = self.roster.joiners
        return x.Rostered(
            self.roster.generation, assignment.workers, assignment.lead, joiners, replicas.backups, replicas.filling
        )

    def _copy(self, shard: int, parts: tuple[Part, ...] = ()) -> ShardReplica:
        """What we have of a shard; ``parts`` are those of the checkpoint that its first primary begins from."""
        if shard not in self._copies:
            is_colocated = any(map(self.is_local, self._workers))
            shards = len(self.roster.assignment.shards)
            tensors = Tensors(shard, shards, shares_memory=is_colocated, parts=parts, meanwhile=self.meanwhile)
            self._copies[shard] = ShardReplica(self, shard, tensors, _now)
        return self._copies[shard]

    # What is said here

    def _hear_all(self) -> None:
        """Take what waits, for a while: there is more to look at than what others say."""
        until = _now() + _LOOK_MS
        while _now() < until:
            delivery = self._heard_meanwhile.popleft() if self._heard_meanwhile else self._receive()
            if delivery is None:
                return
            self._take_or_refuse(delivery)
            self._hear_own()

    def meanwhile(self) -> None:
        """Something takes long: answer whoever asks whether we are there. All else is heard in its turn."""
        if _now() - self._answered_at < _LOOK_MS:
            return
        self._answered_at = _now()
        self._listener.authenticate()
        while (delivery := self._receive()) is not None:
            self._heard_meanwhile.append(delivery)
        self._beat()

    def _receive(self) -> Delivery | None:
        """The next message that is more than a beat."""
        while True:
            try:
                delivery = self._listener.receive()
            except RemoteProtocolError as error:
                _refuse(error)
                continue
            if delivery is None or not self._is_only_a_beat(delivery):
                return delivery

    def _is_only_a_beat(self, delivery: Delivery) -> bool:
        """Whoever says anything is there; a worker's beat is answered."""
        role, index = _speaker(delivery)
        heard = self._others if role == "server" else self._heard
        if index in heard:
            heard[index] = _now()
        if not isinstance(delivery.message, say.Beat):
            return False
        if role == "worker":
            self._listener.send(delivery.sender, say.Beat(self.roster.generation))
        return True

    def _hear_own(self) -> None:
        while self._own:
            self._take_or_refuse(self._own.popleft())

    def _take_or_refuse(self, delivery: Delivery) -> None:
        try:
            self._take(delivery)
        except RemoteProtocolError as error:
            _refuse(error)
            self._listener.send(delivery.sender, say.Declined(self.roster.generation, "peer", str(error)))

    def _take(self, delivery: Delivery) -> None:
        """One message, from a server or from a worker under its own name."""
        (role, index), message = _speaker(delivery), delivery.message
        if not isinstance(message, say.ParameterMessage):
            raise RemoteProtocolError(f"a {type(message).__name__}, which is of another kind of job")
        if role == "server":
            self._from_server(index, delivery, message)
            return
        shard = getattr(message, "shard", None)
        copy = self._copies.get(shard) if shard is not None else None
        if copy is not None and copy.is_primary:
            copy.hear(index, message, delivery.frames)
        elif message.generation > self.roster.generation:
            self._keep(delivery)
        else:
            _refuse(RemoteProtocolError(f"worker-{index} takes us for the primary of shard {shard}"))

    def _from_server(self, index: int, delivery: Delivery, message: say.ParameterMessage) -> None:
        """The fence: only the primary of the generation in force is obeyed."""
        if message.generation > self.roster.generation:
            self._keep(delivery)
        elif isinstance(message, say.Norms):
            for copy in self._copies.values():
                if copy.is_primary:
                    copy.happened(x.NormsHeard(message.shard, message.step, message.squares, message.asks))
        elif isinstance(message, say.Replicated):
            led = self._copies.get(message.shard)
            if led is not None and led.is_primary:
                led.happened(x.Copied(index, message.bucket, message.version))
        elif isinstance(message, say.HasCopy):
            led = self._copies.get(message.shard)
            if led is not None and led.is_primary and message.generation == self.roster.generation:
                led.happened(x.CopyTold(index, message.versions))
        elif not isinstance(message, FromServer) or not 0 <= message.shard < len(self.roster.assignment.shards):
            raise RemoteProtocolError(f"a {type(message).__name__} from server-{index}")
        elif index == self.roster.assignment.shards[message.shard].primary:
            self._copy(message.shard).follow(message, delivery.frames)

    def _keep(self, delivery: Delivery) -> None:
        if len(self._early) >= limits.EARLY_MESSAGES:
            raise RemoteProtocolError("too much is said in a generation that is not known here")
        self._early.append(delivery)

    # What shards want

    def to_worker(
        self, worker: int, message: say.ParameterMessage, frames: Iterable[Buffer] = ()
    ) -> zmq.MessageTracker | None:
        """See ``replica.Host``."""
        return self._listener.send(b"worker-%d" % worker, message, frames)

    def to_server(self, server: int, message: say.ParameterMessage, frames: Iterable[Buffer] = ()) -> None:
        """See ``replica.Host``."""
        if server == self._index:
            self._own.append(Delivery(b"server-%d" % server, message, ()))
        elif server in self._lines:
            self._lines[server].send(message, frames)

    def is_local(self, worker: int) -> bool:
        """See ``replica.Host``."""
        return worker in self._workers and self._workers[worker].node == self._launch.node

    def worker_name(self, worker: int) -> str:
        """See ``replica.Host``."""
        node = f"@{self._workers[worker].node_name}" if worker in self._workers else ""
        return f"worker-{worker}{node}"

    def _tell_written(self) -> None:
        for part in self.writer.done():
            self.child.tell(PartWritten(part.step, part.shard, part.blob, str(part.path), part.size_bytes, part.final))
            copy = self._copies.get(part.shard)
            if copy is not None and copy.is_primary:
                copy.happened(x.PartDurable(part.step, part.final))
        for copy in self._copies.values():
            copy.go_on()

    def _lose_patience(self) -> None:
        if _now() - self._looked_at < _LOOK_MS:
            return
        self._looked_at = _now()
        silent: dict[tuple[Role, int], int] = {("worker", w): _now() - heard for w, heard in self._heard.items()}
        late = {server for copy in self._copies.values() if copy.is_primary for server in copy.silent_copies()}
        for server in late & self._others.keys():  # it is awaited, and not heard of: one that is only slow beats
            silent["server", server] = _now() - self._others[server]
        for report in self._silences.look(self.roster.generation, silent):
            self.child.tell(report)

    def _beat(self) -> None:
        """To the other servers: who is slow is not silent."""
        if _now() - self._beat_at >= limits.PEER_BEAT_MS:
            self._beat_at = _now()
            for index, line in self._lines.items():
                if _now() - self._others[index] < limits.PEER_SILENT_MS:  # while it is away a few wait, and no more
                    line.send(say.Beat(self.roster.generation))


def _refuse(error: RemoteProtocolError) -> None:
    """A line in the role's log; a peer whose message made no sense is told so and gives up."""
    print(f"refused: {error}", file=sys.stderr, flush=True)


def _speaker(delivery: Delivery) -> tuple[str, int]:
    """Role and index, from a name that the listener has checked against the sender's key."""
    role, _, number = delivery.sender.partition(b"/")[0].decode("ascii").partition("-")
    return role, int(number)


def _now() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000)


def _name(endpoint: Endpoint) -> bytes:
    return f"{endpoint.key.role}-{endpoint.key.index}".encode("ascii")


def serve(child: Child, launch: TrainingLaunch) -> NoReturn:
    """Bind, wait for the first roster, serve; until the daemon ends us."""
    parts = tuple(read_part(Path(path)) for path in launch.files)  # before anybody hears of us, and expects an answer
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys = KeyPair.make()
    listener = DataListener(context, keys, launch.host, launch.ports)
    child.tell(Bound(listener.address, keys.public, os.getpid()))
    Server(child, launch, parts, listener, context, keys).run(child.roster())


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(TrainingLaunch)
    warm_up(launch.threads)  # before we are watched: it can stand still for long on a busy host
    child.start()
    keep_freed_memory()
    try:
        serve(child, launch)
    except OSError as error:
        kind = "disk" if error.errno in _DISK else "server"
        child.fail(kind, f"the parameter server cannot go on: {error}", starting=False)
    except Exception:  # noqa: BLE001 (a bug of ours: the daemon gets its traceback, and the process ends)
        child.fail("server", traceback.format_exc(), starting=False)


if __name__ == "__main__":
    main()
