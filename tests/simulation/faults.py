"""What goes wrong: each kind of fault begins, lasts, and ends. Several burn at once."""

from collections import Counter
from collections.abc import Callable

from dmi_protocol import limits
from dmi_protocol.effects import PersistVote
from dmi_protocol.events import Stopping
from dmi_protocol.kinds.job import STARTING
from tests.simulation.node import Node
from tests.simulation.process import Process, exits
from tests.simulation.server import Server
from tests.simulation.worker import ScriptedWorker
from tests.simulation.workload import Workload
from tests.simulation.world import World

Undo = Callable[[], None]


def _leads(node: Node) -> bool:
    return node.peer is not None and node.peer.raft.is_leader


def _grants_vote(node: Node) -> bool:
    return any(isinstance(write, PersistVote) and write.voted_for not in {None, node.me.node} for write in node.writes)


def _trains(process: Process) -> bool:
    return isinstance(process, ScriptedWorker | Server)


class Faults:
    """Plans ``count`` faults between ``begin_ms`` and ``end_ms``; at least seven kinds of them."""

    def __init__(self, world: World, workload: Workload) -> None:
        self._world = world
        self._workload = workload
        self.happened: Counter[str] = Counter()
        self.kinds: dict[str, Callable[[], Undo | None]] = {
            "crash": self._crash,
            "crash-in-write": self._crash_in_write,
            "crash-in-vote": self._crash_in_vote,
            "crash-leader": self._crash_leader,
            "rivals": self._rivals,
            "restart-all": self._restart_all,
            "stop": self._stop,
            "partition": self._partition,
            "isolate-leader": self._isolate_leader,
            "one-way": self._one_way,
            "loss": self._loss,
            "repeat": self._repeat,
            "slow-network": self._slow_network,
            "slow-disk": self._slow_disk,
            "full-disk": self._full_disk,
            "odd-adapter": self._odd_adapter,
            "pause": self._pause,
            "flap": self._flap,
            "role-dies": self._role_dies,
            "crash-starting": self._crash_starting,
            "deaf-worker": self._deaf_worker,
            "reset": self._reset,
            "role-is-busy": self._role_is_busy,
            "role-is-stopped": self._role_is_stopped,
            "silent-pair": self._silent_pair,
        }
        self._is_over = False

    def plan(self, count: int, begin_ms: int, end_ms: int) -> None:
        """Every universe has its own favourites, and all kinds come round."""
        random = self._world.random
        names = list(self.kinds)
        favourites = random.sample(names, 3)
        chosen = random.sample(names, 7) + [
            random.choice(favourites if random.random() < 0.4 else names) for _ in range(count - 7)
        ]
        for name in chosen:
            self._world.clock.at(begin_ms + int((end_ms - begin_ms) * random.random()), self._begin, name)

    def _begin(self, name: str) -> None:
        self.happened[name] += 1
        self._world.clock.note(f"{self._world.clock.now} {name}")
        undo = self.kinds[name]()
        if undo is not None:
            self._world.clock.later(200 + int(4_000 * self._world.random.random() ** 2), self._end, undo)

    def _end(self, undo: Undo) -> None:
        if not self._is_over:
            undo()

    def over(self) -> None:
        """Everything heals, at once."""
        self._is_over = True
        self._world.heal()

    # Daemons

    def _some(self) -> Node | None:
        nodes = self._world.up()
        return self._world.random.choice(nodes) if nodes else None

    def _leader(self) -> Node | None:
        leaders = [node for node in self._world.up() if _leads(node)]
        return self._world.random.choice(leaders) if leaders else None

    def _down(self, node: Node | None) -> Undo | None:
        if node is None or not node.is_up:
            return None
        self._world.crash(node)
        return lambda: self._back(node)

    def _back(self, node: Node) -> None:
        if not node.is_up:
            self._world.start(node)

    def _crash(self) -> Undo | None:
        return self._down(self._some())

    def _crash_leader(self) -> Undo | None:
        return self._down(self._leader())

    def _crash_in_write(self) -> Undo | None:
        """The power fails while a disk writes; the node is back soon."""
        self._catch(lambda node: node.is_writing, 20, 500)
        return None

    def _crash_in_vote(self) -> Undo | None:
        """An election on a slow network and slow disks, whose voters lose their power while they write."""
        world = self._world
        undo = self._down(self._leader())
        world.network.slowness_ms = 300
        for node in world.up():
            node.write_ms = 40
        for _ in range(4):
            self._catch(_grants_vote, 1, 30)

        def calm() -> None:
            world.network.slowness_ms = 0
            for node in world.nodes.values():
                node.write_ms = 2
            if undo is not None:
                undo()

        return calm

    def _rivals(self) -> Undo | None:
        """A leader goes on with one friend only; whoever the others elect fails at once (Raft, figure 8)."""
        leader = self._leader()
        if leader is None:
            return None
        friends = [leader.name, self._world.random.choice([name for name in self._world.nodes if name != leader.name])]
        others = [name for name in self._world.nodes if name not in friends]
        undo = self._cut([way for a in friends for b in others for way in ((a, b), (b, a))])
        for number in range(3):
            self._world.clock.later(10 + 20 * number, self._workload.chat, leader)
        self._catch(lambda node: node is not leader and node.is_writing and _leads(node), 1_500, 3_000)
        return undo

    def _catch(self, is_it: Callable[[Node], bool], soonest_ms: int, latest_ms: int, tries: int = 1_500) -> None:
        """Watch for a moment, and crash the node that is in it."""
        found = [node for node in self._world.up() if is_it(node)]
        if found and not self._is_over:
            node = self._world.random.choice(found)
            self._world.crash(node)
            delay = soonest_ms + int((latest_ms - soonest_ms) * self._world.random.random())
            self._world.clock.later(delay, self._back, node)
        elif tries and not self._is_over:
            self._world.clock.later(2, self._catch, is_it, soonest_ms, latest_ms, tries - 1)

    def _restart_all(self) -> Undo | None:
        """A short power cut of everything."""
        nodes = self._world.up()
        for node in nodes:
            self._world.crash(node)
        for node in nodes:
            self._world.clock.later(50 + int(1_000 * self._world.random.random()), self._back, node)
        return None

    def _stop(self) -> Undo | None:
        """A daemon is ended in good order."""
        node = self._some()
        if node is None or node.is_paused:
            return None
        node.give(Stopping())
        boot_count = node.boot_count
        self._world.clock.later(60, self._ended, node, boot_count)
        return lambda: self._back(node)

    def _ended(self, node: Node, boot_count: int) -> None:
        if node.boot_count == boot_count:
            self._world.crash(node)
            if self._is_over:
                self._world.start(node)

    def _pause(self) -> Undo | None:
        node = self._some()
        if node is None:
            return None
        node.pause()
        boot_count = node.boot_count
        return lambda: node.unpause() if node.boot_count == boot_count else None

    def _slow_disk(self) -> Undo | None:
        node = self._some()
        if node is None:
            return None
        node.write_ms = 150

        def undo() -> None:
            node.write_ms = 2

        return undo

    def _full_disk(self) -> Undo | None:
        """Of the coordinator, or of anybody: it takes nothing for a while, whatever becomes of the daemon."""
        node = self._leader() if self._world.random.random() < 0.5 else self._some()
        if node is None:
            return None
        node.disk_is_full = True

        def undo() -> None:
            node.disk_is_full = False

        return undo

    def _odd_adapter(self) -> Undo | None:
        """What a host does for its role processes raises at random, for long: that is never the daemon's trouble."""
        node = self._some()
        if node is not None:
            node.adapter_raises = self._world.random.choice([0.2, 0.5, 1.0])
            self._world.clock.later(4_000 + int(12_000 * self._world.random.random()), self._even_adapter, node)
        return None

    def _even_adapter(self, node: Node) -> None:
        node.adapter_raises = 0.0

    # What jobs run on

    def _role_dies(self) -> Undo | None:
        self._on_role(lambda process: True, lambda process: exits(process, -9, 9))
        return None

    def _crash_starting(self) -> Undo | None:
        """A host is lost for longer than others wait for it, while its roles are bound and others are not yet."""
        self._on_role(self._is_bound_early, lambda process: self._lose(process.node))
        return None

    def _is_bound_early(self, process: Process) -> bool:
        job = self._world.agreement.state.jobs.get(process.key.job)
        is_starting = job is not None and job.state == STARTING
        return is_starting and job is not None and any(record.endpoint.key == process.key for record in job.endpoints)

    def _lose(self, node: Node) -> None:
        self._world.crash(node)
        self._world.clock.later(1_500 + int(5_000 * self._world.random.random()), self._back, node)

    def _deaf_worker(self) -> Undo | None:
        """What servers show does not get to the host of a worker without leaves, which speaks on: nobody waits for it."""
        self._on_role(self._is_far_and_idle, self._deafen)
        return None

    def _is_far_and_idle(self, process: Process) -> bool:
        beside = [other for other in self._workload.living() if other.node is process.node]
        return (
            isinstance(process, ScriptedWorker)
            and process.is_idle
            and all(isinstance(p, ScriptedWorker) for p in beside)
        )

    def _deafen(self, process: Process) -> None:
        name = process.node.name
        undo = self._cut([(other, name) for other in self._world.nodes if other != name])
        self._world.clock.later(300 + int(3_000 * self._world.random.random()), self._end, undo)

    def _role_is_busy(self) -> None:
        """One call keeps a process from everything for longer than a pair may be silent; it is left alone."""
        self._hold(computes=True)

    def _role_is_stopped(self) -> None:
        """It uses no processor time either: its daemon ends it."""
        self._hold(computes=False)

    def _hold(self, *, computes: bool) -> None:
        for_ms = limits.PAIR_SILENT_MS + int(6_000 * self._world.random.random())
        self._on_role(_trains, lambda process: self._world.sockets.holding.hold(process, for_ms, computes=computes))

    def _silent_pair(self) -> None:
        """Role processes of two hosts do not hear each other, whose daemons do: a firewall lets one port through."""

        def act(process: Process) -> None:
            other = self._world.random.choice([name for name in self._world.nodes if name != process.node.name])
            ends = frozenset({process.node.name, other})
            self._world.sockets.silent.add(ends)
            for_ms = limits.PAIR_SILENT_MS + int(6_000 * self._world.random.random())
            self._world.clock.later(for_ms, self._world.sockets.silent.discard, ends)

        self._on_role(_trains, act)

    def _reset(self) -> None:
        """Again and again for a while, connections between role processes break and lose what was on its way."""
        self._reset_some(40)

    def _reset_some(self, times: int) -> None:
        names = sorted({process.node.name for process in self._workload.living()})
        if names:
            self._world.sockets.reset(self._world.random.choice(names))
        if times and not self._is_over:
            self._world.clock.later(5 + int(100 * self._world.random.random()), self._reset_some, times - 1)

    def _on_role(self, is_it: Callable[[Process], bool], act: Callable[[Process], None], tries: int = 400) -> None:
        """Wait for an occasion, and use it."""
        if self._is_over:
            return
        found = [process for process in self._workload.living() if is_it(process) and process.node.is_up]
        if found:
            act(self._world.random.choice(found))
        elif tries:
            self._world.clock.later(20, self._on_role, is_it, act, tries - 1)

    # The network

    def _cut(self, ways: list[tuple[str, str]]) -> Undo:
        noticed = self._world.random.random() < 0.5
        for source, target in ways:
            self._world.cut(source, target, noticed=noticed)

        def undo() -> None:
            for source, target in ways:
                self._world.network.open_way(source, target)

        return undo

    def _partition(self) -> Undo | None:
        names = list(self._world.nodes)
        size = self._world.random.randrange(1, len(names))
        side = set(self._world.random.sample(names, size))
        return self._cut([(a, b) for a in names for b in names if (a in side) != (b in side)])

    def _isolate_leader(self) -> Undo | None:
        node = self._leader()
        if node is None:
            return None
        others = [name for name in self._world.nodes if name != node.name]
        friends = set(self._world.random.sample(others, self._world.random.choice([0, 0, 1])))
        away = [name for name in others if name not in friends]
        return self._cut([way for name in away for way in ((node.name, name), (name, node.name))])

    def _one_way(self) -> Undo | None:
        """Some are not heard by others, though they hear them."""
        names = list(self._world.nodes)
        mute = set(self._world.random.sample(names, self._world.random.choice([1, 1, 2])))
        deaf = set(self._world.random.sample(names, self._world.random.randrange(1, len(names))))
        return self._cut([(a, b) for a in names for b in names if a in mute and b in deaf and a != b])

    def _loss(self) -> Undo | None:
        self._world.network.loss = self._world.random.choice([0.05, 0.2, 0.4])

        def undo() -> None:
            self._world.network.loss = 0.0

        return undo

    def _repeat(self) -> Undo | None:
        self._world.network.repeat = 0.3

        def undo() -> None:
            self._world.network.repeat = 0.0

        return undo

    def _slow_network(self) -> Undo | None:
        self._world.network.slowness_ms = self._world.random.choice([30, 200, 1_500])

        def undo() -> None:
            self._world.network.slowness_ms = 0

        return undo

    def _flap(self) -> Undo | None:
        """Connections break and come back, while nothing else is wrong."""
        nodes = self._world.up()
        for node in nodes:
            for other in nodes:
                if node is not other and self._world.random.random() < 0.4:
                    self._world.break_link(node, other, 20)
        return None
