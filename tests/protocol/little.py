"""A few peers and a perfect network in virtual time: enough to follow one story. The simulator is for the rest."""

import heapq
from collections.abc import Callable
from random import Random

from dmi_protocol import effects as do
from dmi_protocol import events as on
from dmi_protocol.cluster.command import Admit, Command, Invite
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Effect
from dmi_protocol.events import Event
from dmi_protocol.identity import NodeId, PublicKey, RequestId, node_id
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import Entry, Snapshot
from dmi_protocol.messages.control import Introduced
from dmi_protocol.peer import Me, Peer, PeerSettings, found

DELAY_MS = 2


def me(name: str) -> Me:
    """A node of this name; its key is made of it."""
    key = PublicKey(name.ljust(40, "."))
    return Me(node_id(key), name, f"127.0.0.1:{1000 + sum(name.encode())}", key, pid=7, version="0")


class Disk:
    """What a peer has persisted."""

    def __init__(self, restored: Restored) -> None:
        self.term, self.voted_for = restored.term, restored.voted_for
        self.snapshot: Snapshot | None = restored.snapshot
        self.entries: list[Entry] = list(restored.entries)

    def write(self, effect: Effect) -> None:
        match effect:
            case do.PersistVote(term, voted_for):
                self.term, self.voted_for = term, voted_for
            case do.PersistEntries(first, entries):
                self.entries = [e for e in self.entries if e.index < first] + list(entries)
            case do.PersistSnapshot(snapshot, keep_log):
                self.entries = [e for e in self.entries if keep_log and e.index > snapshot.index]
                self.snapshot = snapshot

    def restored(self) -> Restored:
        return Restored(self.term, self.voted_for, self.snapshot, tuple(self.entries))


class Little:
    """``run`` lets time pass; ``did`` has every effect that was not a message or a write, by node's name."""

    def __init__(self, seed: int = 0, settings: PeerSettings | None = None) -> None:
        self.now = Instant(0)
        self.random = Random(seed)
        self.settings = settings or PeerSettings()
        self.peers: dict[str, Peer] = {}
        self.disks: dict[str, Disk] = {}
        self.names: dict[NodeId, str] = {}
        self.did: list[tuple[str, Effect]] = []
        self.cut: set[tuple[str, str]] = set()
        self.known: dict[str, dict[NodeId, Introduced]] = {}
        """Whom each node remembers over a restart."""
        self.linked: set[tuple[str, NodeId]] = set()
        """Who speaks to whom, and hears whom."""
        self._queue: list[tuple[Instant, int, str, Event]] = []
        self._count = 0

    def add(self, name: str, introduced: tuple[Introduced, ...] = (), *, founder: bool = False) -> Peer:
        who = me(name)
        self.disks[name] = Disk(found(who, "mesh") if founder else Restored())
        self.names[who.node] = name
        self.known[name] = {other.node: other for other in introduced}
        return self.start(name)

    def start(self, name: str) -> Peer:
        disk, known = self.disks[name], tuple(self.known[name].values())
        self.peers[name] = Peer(me(name), self.settings, Random(self.random.random()), disk.restored(), known)
        self.give(name, on.Ticked())
        return self.peers[name]

    def kill(self, name: str) -> None:
        """Gone without a word; the others see their connections break."""
        del self.peers[name]
        self.linked = {(one, two) for one, two in self.linked if one != name}
        for other in list(self.peers):
            self.give(other, on.Disconnected(me(name).node))

    def give(self, name: str, event: Event) -> None:
        """An event happens now."""
        self._later(0, name, event)

    def ask(self, name: str, command: Command, within_ms: int = 10_000) -> None:
        self.give(name, on.Asked(command.request, command, within_ms))

    def join(self, via: str, name: str) -> None:
        """Invite and admit ``name`` through ``via``, and start it."""
        who, key = me(name), PublicKey(f"invitation-{name}".ljust(40, "."))
        self.ask(via, Invite(RequestId(f"invite-{name}"), key, 1_000))
        self.ask(via, Admit(RequestId(f"admit-{name}"), key, 0, name, who.address, who.public_key, witness=False))
        self.answer(f"admit-{name}")
        records = self.state(via).members.values()
        members = tuple(Introduced(m.node, m.name, m.address, m.public_key) for m in records)
        self.add(name, members)

    def is_answered(self, request: str) -> bool:
        return any(isinstance(e, do.Answer) and e.request == request for _, e in self.did)

    def answer(self, request: str) -> do.Answer:
        """Waits for it."""
        self.until(lambda: self.is_answered(request))
        return next(e for _, e in self.did if isinstance(e, do.Answer) and e.request == request)

    def state(self, name: str) -> ClusterState:
        found = self.peers[name].state
        assert found is not None
        return found

    def effects(self, name: str, kind: type[Effect]) -> list[Effect]:
        return [effect for who, effect in self.did if who == name and isinstance(effect, kind)]

    def leader(self) -> str:
        """The node that leads and is ready; nobody is an empty name."""
        leaders = [n for n, p in self.peers.items() if p.raft.is_ready]
        return max(leaders, key=lambda n: self.peers[n].raft.term, default="")

    def _later(self, delay: int, name: str, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._queue, (Instant(self.now + delay), self._count, name, event))

    def _step(self, name: str, event: Event) -> None:
        peer = self.peers.get(name)
        if peer is None or (isinstance(event, on.Received) and (name, event.sender) not in self.linked):
            return
        for effect in peer.step(self.now, event):
            self._do(name, effect)
        peer.check()

    def _do(self, name: str, effect: Effect) -> None:
        match effect:
            case do.Send(to, message):
                target = self.names.get(to)
                if target is not None and (name, to) in self.linked and (name, target) not in self.cut:
                    self._later(DELAY_MS, target, on.Received(me(name).node, message))
            case do.PersistVote() | do.PersistEntries() | do.PersistSnapshot():
                self.disks[name].write(effect)
            case do.Link(node, called, address, public_key):
                self.known[name][node] = Introduced(node, called, address, public_key)
                self.linked.add((name, node))
                if self.names.get(node) in self.peers:
                    self._later(DELAY_MS, name, on.Connected(node))
            case do.Unlink(node):
                self.known[name].pop(node, None)
                self.linked.discard((name, node))
                self.did.append((name, effect))
            case do.FetchBlob(blob):
                self._later(DELAY_MS, name, on.BlobArrived(blob))
            case _:
                self.did.append((name, effect))

    def run(self, milliseconds: int) -> None:
        """Let so much time pass."""
        end = self.now + milliseconds
        self.until(lambda: False, milliseconds, must=False)
        self.now = Instant(end)

    def until(self, happened: Callable[[], bool], within_ms: int = 20_000, *, must: bool = True) -> int:
        """Let time pass until ``happened()``; gives the milliseconds that it took."""
        begin, end = self.now, self.now + within_ms
        while not happened():
            due = [(d, name) for name, p in self.peers.items() if (d := p.deadline()) is not None]
            tick = min(due, default=None)
            first = self._queue[0][0] if self._queue else None
            if first is not None and (tick is None or first <= tick[0]):
                if first > end:
                    break
                at, _, name, event = heapq.heappop(self._queue)
                self.now = Instant(max(at, self.now))
                self._step(name, event)
            elif tick is not None and tick[0] <= end:
                self.now = Instant(max(tick[0], self.now))
                before = self.peers[tick[1]].deadline()
                self._step(tick[1], on.Ticked())
                assert self.peers[tick[1]].deadline() != before, f"{tick[1]} wants a tick again and again"
            else:
                break
        assert happened() or not must, f"not within {within_ms} ms"
        return self.now - begin
