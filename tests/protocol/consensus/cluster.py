"""A few bare Raft nodes, their disks and the messages between them. Nothing moves unless a test says so."""

from collections.abc import Callable, Iterable
from random import Random

import msgpack
from msgspec import Struct

from dmi_protocol.cluster.command import Cancel
from dmi_protocol.consensus.output import ApplyEntries, Output, Restore
from dmi_protocol.consensus.raft import Raft
from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import PersistEntries, PersistSnapshot, PersistVote, Send
from dmi_protocol.events import Connected, Disconnected, Event, Received, Ticked
from dmi_protocol.identity import JobId, NodeId, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import ConsensusMessage, Entry, Snapshot
from tests.protocol.little import Disk


class Letter(Struct, frozen=True):
    """A message under way."""

    sender: NodeId
    to: NodeId
    message: ConsensusMessage


def node(name: str) -> NodeId:
    return NodeId(name)


def nodes(names: Iterable[str]) -> frozenset[NodeId]:
    return frozenset(map(node, names))


def command(name: str) -> Cancel:
    """Any command does: consensus does not look inside."""
    return Cancel(RequestId(name), JobId("job"))


def entries(*terms: int, first: int = 1) -> tuple[Entry, ...]:
    """Entries of these terms; equal index and term give equal commands."""
    return tuple(Entry(first + i, term, command(f"{first + i}/{term}")) for i, term in enumerate(terms))


def founded(voters: str) -> Snapshot:
    """What a mesh begins with."""
    return Snapshot(1, 1, tuple(sorted(nodes(voters))), msgpack.packb([]))


class Cluster:
    """``a``, ``b``, ... with the same beginning. Effects are done at once and in order; messages wait in ``letters``."""

    def __init__(
        self,
        voters: str = "abc",
        learners: str = "",
        seed: int = 0,
        settings: RaftSettings | None = None,
        **restored: Restored,
    ) -> None:
        self.now = Instant(0)
        self.settings = settings or RaftSettings()
        self.seed = seed
        self.members = nodes(voters + learners)
        self.disks = {n: Disk(restored.get(n, Restored(1, None, founded(voters)))) for n in sorted(self.members)}
        self.rafts: dict[NodeId, Raft] = {}
        self.lives = dict.fromkeys(self.disks, 0)
        self.letters: list[Letter] = []
        self.applied: dict[NodeId, list[Entry | int]] = {}
        """Since the node's last start: committed entries, and the index of a snapshot that was restored."""
        self.states: dict[NodeId, list[list[object]]] = {}
        """What applying made of it, in the form that snapshots hold."""
        self.on_output: Callable[[NodeId, Output], None] = lambda name, output: None
        for name in self.disks:
            self.start(name)

    def start(self, name: str) -> Raft:
        """From disk, as after a crash."""
        me = node(name)
        restored = self.disks[me].restored()
        self.lives[me] += 1
        self.rafts[me] = Raft(me, self.settings, Random(f"{self.seed}/{me}/{self.lives[me]}"), restored)
        self.applied[me] = []
        self.states[me] = msgpack.unpackb(restored.snapshot.state) if restored.snapshot is not None else []
        self.rafts[me].follow(self.now, self.members - {me})
        self.give(me, Ticked())
        return self.rafts[me]

    def kill(self, name: str) -> None:
        """Gone: what was sent may still arrive, and everybody's connection breaks."""
        del self.rafts[node(name)]
        for other in list(self.rafts):
            self.give(other, Disconnected(node(name)))

    def connect(self, name: str) -> None:
        for other in list(self.rafts):
            if other != name:
                self.give(other, Connected(node(name)))

    def give(self, name: str, event: Event) -> list[Output]:
        me = node(name)
        return self.do(name, self.rafts[me].step(self.now, event))

    def do(self, name: str, outputs: list[Output], most: int | None = None) -> list[Output]:
        """Carry out the first ``most`` effects; a crash cuts the rest off."""
        me = node(name)
        self.rafts[me].check()
        for output in outputs[:most]:
            match output:
                case Send(to, message):
                    assert isinstance(message, ConsensusMessage)
                    self.letters.append(Letter(me, to, message))
                case ApplyEntries(committed):
                    self.applied[me] += committed
                    self.states[me] += [[e.index, e.term, repr(e.command)] for e in committed]
                case Restore(snapshot):
                    self.applied[me].append(snapshot.index)
                    self.states[me] = msgpack.unpackb(snapshot.state)
                case PersistVote() | PersistEntries() | PersistSnapshot():
                    self.disks[me].write(output)
            self.on_output(me, output)
        return outputs

    def tick(self, name: str) -> list[Output]:
        """Let time pass up to the deadline of ``name``, for it alone."""
        deadline = self.rafts[node(name)].deadline()
        assert deadline is not None, f"{name} waits for nothing"
        self.now = Instant(max(self.now, deadline))
        return self.give(name, Ticked())

    def take(self, sender: str | None = None, to: str | None = None) -> list[Letter]:
        """Letters that match, taken out of the network."""
        taken = [le for le in self.letters if sender in {None, le.sender} and to in {None, le.to}]
        self.letters = [le for le in self.letters if le not in taken]
        return taken

    def deliver(self, letter: Letter) -> list[Output]:
        return self.give(letter.to, Received(letter.sender, letter.message)) if letter.to in self.rafts else []

    def settle(self, *only: str) -> None:
        """Deliver everything, answers too, until nobody has anything to say; with ``only``, among these."""
        among = nodes(only) if only else frozenset(self.disks)
        for _ in range(10_000):
            here = next((le for le in self.letters if le.sender in among and le.to in among), None)
            if here is None:
                return
            self.letters.remove(here)
            self.deliver(here)
        raise AssertionError("they never stop talking")

    def run(self, milliseconds: int, *only: str) -> None:
        """Let time pass on a network without delay. With ``only``, the others neither tick nor are reached."""
        among = nodes(only) if only else frozenset(self.disks)
        end = Instant(self.now + milliseconds)
        while True:
            self.settle(*only)
            due = [(d, n) for n, r in self.rafts.items() if n in among and (d := r.deadline()) is not None]
            first = min(due, default=None)
            if first is None or first[0] > end:
                break
            self.now = Instant(max(self.now, first[0]))
            self.give(first[1], Ticked())
        self.now = end

    def until(self, happened: Callable[[], bool], within_ms: int = 10_000) -> int:
        """Let time pass; gives the milliseconds that it took."""
        begin = self.now
        while not happened():
            assert self.now - begin < within_ms, f"not within {within_ms} ms"
            self.run(1)
        return self.now - begin

    def elect(self, name: str, *only: str) -> Raft:
        """Make ``name`` lead, by its own patience, among ``only`` or all; everybody else forgets whom it heard."""
        raft = self.rafts[node(name)]
        self.now = Instant(self.now + 2 * self.settings.election_ms)
        self.give(name, Ticked())
        self.settle(*only)
        assert raft.is_leader, f"{name} is not elected"
        return raft

    def propose(self, name: str, *what: str) -> None:
        for each in what:
            self.do(name, self.rafts[node(name)].propose(self.now, command(each)))

    def commands(self, name: str) -> list[str]:
        """The requests that ``name`` has applied, in order."""
        return [
            e.command.request
            for e in self.applied[node(name)]
            if isinstance(e, Entry) and isinstance(e.command, Cancel)
        ]

    def terms(self, name: str) -> list[int]:
        log = self.rafts[node(name)].log
        return [log.term_at(index) or 0 for index in range(log.start + 1, log.last + 1)]
