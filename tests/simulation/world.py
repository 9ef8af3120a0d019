"""A universe: nodes, the network between them, the role processes on them, and the checkers that watch it all."""

from collections import Counter
from collections.abc import Callable, Sequence

from dmi_protocol import limits
from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.command import Command
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.codec import open_envelope, seal
from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import (
    Answer,
    DropBlob,
    Effect,
    FetchBlob,
    Link,
    Redial,
    Retire,
    Send,
    StartRole,
    StopRole,
    TellRole,
    Unlink,
)
from dmi_protocol.events import (
    Asked,
    BlobArrived,
    BlobFailed,
    Connected,
    Disconnected,
    Event,
    Received,
    RoleHappened,
    TurnedAway,
)
from dmi_protocol.gossip_facts import about
from dmi_protocol.identity import BlobHash, NodeId, PublicKey, RequestId, node_id
from dmi_protocol.jobs.hosting import CANNOT_START_HERE, not_here
from dmi_protocol.kinds.job import ENDED
from dmi_protocol.messages.consensus import ConsensusMessage, Snapshot, TimeoutNow, Voted
from dmi_protocol.messages.control import Introduced
from dmi_protocol.messages.membership import MembershipMessage
from dmi_protocol.messages.mesh import Message, Wire
from dmi_protocol.messages.roles import Failed, Fleet, Followers, Lease, RoleKey, Roster, Slices
from dmi_protocol.peer import Me, Peer, PeerSettings
from tests.simulation.checkers import Agreement, Answers, Incarnations, Roles
from tests.simulation.clock import Clock
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.process import Process, exits, tell_daemon
from tests.simulation.replica import ScriptedReplica
from tests.simulation.roles import spawn
from tests.simulation.serving import ScriptedGateway, ServingReplica
from tests.simulation.sockets import Sockets
from tests.simulation.trouble import Violation, demand
from tests.simulation.worker import ScriptedWorker

BUNDLE = BlobHash("b" * 64)
_CODEC_EVERY = 97
_BOUNDS_EVERY = 7
"""Turns in which somebody heard gossip: what grows without a bound is still there in the next one."""
_NOTICE_MS = 400
_RECONNECT_MS = 300


def me(name: str) -> Me:
    """A node of this name; its key is made of it, and how large it is follows from its number."""
    key, number = PublicKey(name.ljust(40, ".")), int(name[1:])
    capacity = Capacity(cpus=1 + number % 3, memory=3 + number % 4)
    return Me(node_id(key), name, f"127.0.0.1:{7000 + number}", key, pid=7, version="0", capacity=capacity)


class World:
    """Begins with so many ``founders``; everything that happens in it is a function of ``seed``."""

    def __init__(self, seed: int, founders: int) -> None:
        self.clock = Clock(seed)
        self.random = self.clock.random
        self.counters: Counter[str] = Counter()
        self.network = Network(self.clock)
        self.sockets = Sockets(self.clock, self.network, self.counters)
        self.nodes: dict[str, Node] = {}
        self.of: dict[NodeId, Node] = {}
        self.settings = PeerSettings(
            raft=RaftSettings(entries_per_message=self.random.choice([1, 1, 2, 256])),
            compact_entries=self.random.choice([12, 25, 60]),
        )
        self.told: dict[RequestId, Answer] = {}
        self._when_told: dict[RequestId, Callable[[Node, Answer], None]] = {}
        self._connected: set[tuple[str, str]] = set()
        self._sent = self._gossiped = 0
        members = [me(f"n{number}") for number in range(founders)]
        begun = _founded(members)
        self.agreement = Agreement(self.clock, self.of, begun, self.counters)
        self.roles = Roles()
        self.incarnations = Incarnations()
        self.answers = Answers(self.agreement)
        self._begin(members, begun)

    def _begin(self, members: Sequence[Me], begun: ClusterState) -> None:
        """Half of all universes begin with one voter, the others with the most that can be."""
        introduced = [Introduced(m.node, m.name, m.address, m.public_key) for m in members]
        has_one = self.random.random() < 0.5
        voters = tuple(sorted(m.node for m in members[: 1 if has_one else limits.VOTERS]))
        full = Restored(1, None, Snapshot(1, 1, voters, begun.encode()))
        for number, who in enumerate(members):
            others = [other for other in introduced if other.node != who.node]
            self.add(who, full if number == 0 or not has_one else Restored(), others)

    def add(self, who: Me, restored: Restored, introduced: Sequence[Introduced]) -> Node:
        """A new host, and its daemon."""
        node = Node(self.clock, who, restored, introduced, self)
        self.nodes[who.name] = self.of[who.node] = node
        self.start(node)
        return node

    # Hosts and daemons

    def up(self) -> list[Node]:
        """The nodes whose daemons run."""
        return [node for node in self.nodes.values() if node.is_up]

    def start(self, node: Node) -> None:
        """The daemon starts, again or for the first time; who keeps a link to it reconnects."""
        self.clock.note(f"start {node.name}")
        node.start(self.settings)
        for other in self.up():
            if node.me.node in other.linked:
                self._connect_soon(other, node)

    def crash(self, node: Node) -> None:
        """The daemon and its children are gone; who has a connection to it sees it break, unless that is cut."""
        self.clock.note(f"crash {node.name}")
        for process in self.sockets.processes.values():
            if process.node is node:
                process.is_alive = False
        node.crash()
        for other in self.up():
            self._connected.discard((node.name, other.name))
            if self.network.is_open(node.name, other.name):
                self.break_link(other, node, within_ms=20)

    # Links

    def _connect_soon(self, node: Node, other: Node, within_ms: int = _RECONNECT_MS) -> None:
        self.clock.later(1 + int(within_ms * self.random.random()), self._connect, node, node.boot_count, other)

    def _connect(self, node: Node, boot_count: int, other: Node) -> None:
        is_wanted = (
            node.boot_count == boot_count
            and other.me.node in node.linked
            and (node.name, other.name) not in self._connected
        )
        if not is_wanted or not other.is_up:
            return
        if not self.network.is_open(node.name, other.name) or not self.network.is_open(other.name, node.name):
            self._connect_soon(node, other)
        elif node.me.node not in other.linked:
            self._connect_soon(node, other)
            node.give(TurnedAway(other.me.node))
        else:
            self._connected.add((node.name, other.name))
            node.give(Connected(other.me.node))

    def break_link(self, node: Node, other: Node, within_ms: int) -> None:
        """The connection of ``node`` to ``other`` breaks, and it is noticed in a while."""
        if (node.name, other.name) in self._connected:
            self._connected.discard((node.name, other.name))
            self.clock.later(1 + int(within_ms * self.random.random()), self._broken, node, node.boot_count, other)

    def _broken(self, node: Node, boot_count: int, other: Node) -> None:
        if node.boot_count == boot_count:
            node.give(Disconnected(other.me.node))
            self._connect_soon(node, other)

    def cut(self, source: str, target: str, *, noticed: bool) -> None:
        """Nothing gets from one to the other. TCP may notice on both sides, or be silent for long."""
        self.network.close_way(source, target)
        if noticed and target in self.nodes and source in self.nodes:
            self.break_link(self.nodes[source], self.nodes[target], _NOTICE_MS)
            self.break_link(self.nodes[target], self.nodes[source], _NOTICE_MS)

    # What nodes do

    def do(self, node: Node, effect: Effect) -> None:
        """See ``Shell``."""
        match effect:
            case Send(to, message):
                self._send(node, to, message)
            case Link(other) if other in self.of:
                self._connect_soon(node, self.of[other], within_ms=10)
            case Unlink(other) if other in self.of:
                self._connected.discard((node.name, self.of[other].name))
            case Redial(other) if other in self.of:
                self._connected.discard((node.name, self.of[other].name))
                self._connect_soon(node, self.of[other])
            case Retire(reason):
                self.agreement.expulsions.retires(node.me.node, reason)
                self.counters["retired"] += 1
                self.clock.later(1, self._retire, node, node.boot_count)
            case Answer():
                self._answered(node, effect)
            case FetchBlob(blob, sources):
                slowest = self.random.choice([100, 100, 2_500])
                self.clock.later(
                    5 + int(slowest * self.random.random()), self._fetch, node, node.boot_count, blob, sources
                )
            case DropBlob(blob):
                node.blobs.pop(blob, None)
            case StartRole() | TellRole() | StopRole():
                self._do_role(node, effect)
            case _:
                pass

    def _retire(self, node: Node, boot_count: int) -> None:
        if node.boot_count == boot_count:
            self.crash(node)

    def _fetch(self, node: Node, boot_count: int, blob: BlobHash, sources: Sequence[NodeId]) -> None:
        """A blob is had from those who have it."""
        if node.boot_count != boot_count:
            return
        for other in (self.of[source] for source in sources):
            is_open = self.network.is_open(node.name, other.name) and self.network.is_open(other.name, node.name)
            if blob in other.blobs and other.is_up and not other.is_paused and is_open:
                node.blobs[blob] = other.blobs[blob]
        if blob in node.blobs:
            node.give(BlobArrived(blob))
        else:
            self.clock.later(2_000, give, node, boot_count, BlobFailed(blob, "nobody gives it"))

    def _do_role(self, node: Node, effect: StartRole | TellRole | StopRole) -> None:
        process = self.sockets.holders.get(effect.role)
        is_living = process is not None and process.is_alive
        if isinstance(effect, StartRole):
            record = self.agreement.state.members.get(node.me.node)
            demand("roles", record is None or not record.witness, f"{node.name} is a witness and starts {effect.role}")
            self.roles.starts(node.me.node, effect, is_living)
            if self._raises(node):
                self.clock.later(1, self._not_here, node, node.boot_count, effect.role)
                return
            spawn(self.sockets, node, effect.launch)
        elif process is None or not is_living:
            pass
        elif isinstance(effect, TellRole) and self._raises(node):
            tell_daemon(process, self.clock, Failed(CANNOT_START_HERE, "KeyError: 'told'"))
            self.clock.later(2, exits, process, 0, 9)
        elif isinstance(effect, TellRole):
            self.clock.later(1, self.sockets.holding.act, process, _tell, process, effect.message)
        else:
            self.clock.later(2, exits, process, 0, 15)

    def _raises(self, node: Node) -> bool:
        does = node.adapter_raises > 0 and self.random.random() < node.adapter_raises
        self.counters["adapters raised"] += does
        return does

    def _not_here(self, node: Node, boot_count: int, role: RoleKey) -> None:
        for event in not_here("TypeError: odd bundle"):
            give(node, boot_count, RoleHappened(role, event))

    def _send(self, node: Node, to: NodeId, message: Message) -> None:
        target = self.of.get(to)
        if target is None or (node.name, target.name) not in self._connected:
            return
        if node.in_trouble:
            is_promise = isinstance(message, ConsensusMessage) and not isinstance(message, TimeoutNow)
            demand("durable", not is_promise, f"{node.name} says {message} while its disk takes nothing")
        if isinstance(message, Voted):
            self.agreement.votes(node.me.node, to, message)
        self._sent += 1
        if self._sent % _CODEC_EVERY == 0:
            sealed = seal(message)
            demand("codec", open_envelope(sealed, Wire) == message, f"{message} changes on its way")
        self.network.send(node.name, target.name, self._deliver, node.me.node, target, message)

    def _deliver(self, sender: NodeId, target: Node, message: Message) -> None:
        if target.is_up and sender in target.linked:
            self.clock.note(f"{self.clock.now} {target.name} {type(message).__name__}")
            if isinstance(message, MembershipMessage):
                target.has_gossip = True
            target.give(Received(sender, message))

    def turned(self, node: Node) -> None:
        """See ``Shell``."""
        peer = node.peer
        assert peer is not None
        self.agreement.turned(node, peer)
        self.answers.turned(node.name)
        if node.has_gossip:
            node.has_gossip = False
            self.incarnations.turned(node, peer)
            self._gossiped += 1
            if self._gossiped % _BOUNDS_EVERY == 0:
                bounds(node, peer, self.settings)

    # Asking

    def ask(
        self, node: Node, command: Command, within_ms: int = 5_000, then: Callable[[Node, Answer], None] | None = None
    ) -> None:
        """Somebody at ``node`` wants ``command`` agreed."""
        self.expect(node, command.request, within_ms, then)
        node.give(Asked(command.request, command, within_ms))

    def expect(
        self, node: Node, request: RequestId, within_ms: int, then: Callable[[Node, Answer], None] | None = None
    ) -> None:
        """An answer must come."""
        self.answers.asked(node, request, self.clock.now + within_ms)
        if then is not None:
            self._when_told[request] = then

    def _answered(self, node: Node, answer: Answer) -> None:
        self.answers.answered(node, answer)
        self.told[answer.request] = answer
        then = self._when_told.pop(answer.request, None)
        if then is not None:
            self.clock.later(1, then, node, answer)

    def heal(self) -> None:
        """Everything works from now on."""
        self.network.heal()
        self.sockets.heal()
        for node in self.nodes.values():
            node.write_ms = 2
            node.disk_is_full = False
            node.adapter_raises = 0.0
            if not node.is_up:
                self.start(node)
            elif node.is_paused:
                node.unpause()


def bounds(node: Node, peer: Peer, settings: PeerSettings) -> None:
    """Every queue stays below its bound."""
    rumors, members = len(peer.swim.rumors), len(peer.swim.members)
    if rumors > limits.RUMORS * (members + 1):
        raise Violation("queues", f"{node.name} holds {rumors} rumors")
    told = {key for _, key in peer.swim.rumors if key.startswith("job:")}
    if told and peer.state is not None:
        told &= {about(job.id) for job in peer.state.jobs.values() if job.state in ENDED}
    if told and peer.state is not None:
        raise Violation("queues", f"{node.name} spreads {told}, which are over")
    if members > limits.MEMBERS:
        raise Violation("queues", f"{node.name} knows {members} members")
    held = peer.raft.commit - peer.raft.log.start
    if held > 4 * settings.compact_entries + 256:
        raise Violation("queues", f"{node.name} has not compacted {held} entries")


def give(node: Node, boot_count: int, event: Event) -> None:
    """An event for a daemon, if it is still the same one."""
    if node.boot_count == boot_count:
        node.give(event)


def _tell(process: Process, message: Roster | Slices | Fleet | Lease | Followers) -> None:
    if not process.is_alive:
        return
    match message:
        case Lease():
            process.lease(message)
        case Roster():
            process.roster(message)
        case Followers():
            assert isinstance(process, ScriptedWorker)
            process.follow(message)
        case Slices():
            assert isinstance(process, ScriptedReplica)
            process.slices(message)
        case Fleet():
            assert isinstance(process, ScriptedGateway | ServingReplica)
            process.fleet(message)


def _founded(members: Sequence[Me]) -> ClusterState:
    state = ClusterState("universe")
    for who in members:
        state.members[who.node] = MemberRecord(who.node, who.name, who.address, who.public_key, witness=False)
    state.applied = 1
    return state
