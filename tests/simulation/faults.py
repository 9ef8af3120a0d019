"""What goes wrong: each kind of fault begins, lasts, and ends. Several burn at once."""

from collections import Counter
from collections.abc import Callable

from dmi_protocol.events import Stopping
from tests.simulation.node import Node
from tests.simulation.workload import Workload
from tests.simulation.world import World

Undo = Callable[[], None]


class Faults:
    """Plans ``count`` faults between ``begin_ms`` and ``end_ms``; at least seven kinds of them."""

    def __init__(self, world: World, workload: Workload) -> None:
        self._world = world
        self._workload = workload
        self.happened: Counter[str] = Counter()
        self.kinds: dict[str, Callable[[], Undo | None]] = {
            "crash": self._crash,
            "crash-in-write": self._crash_in_write,
            "crash-leader": self._crash_leader,
            "restart-all": self._restart_all,
            "stop": self._stop,
            "partition": self._partition,
            "isolate-leader": self._isolate_leader,
            "one-way": self._one_way,
            "loss": self._loss,
            "repeat": self._repeat,
            "slow-network": self._slow_network,
            "slow-disk": self._slow_disk,
            "pause": self._pause,
            "flap": self._flap,
            "role-dies": self._role_dies,
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
        leaders = [node for node in self._world.up() if node.peer is not None and node.peer.raft.is_leader]
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
        self._catch_writing(400)
        return None

    def _catch_writing(self, tries: int) -> None:
        writing = [node for node in self._world.up() if node.is_writing]
        if writing and not self._is_over:
            node = self._world.random.choice(writing)
            self._world.crash(node)
            self._world.clock.later(20 + int(500 * self._world.random.random()), self._back, node)
        elif tries:
            self._world.clock.later(3, self._catch_writing, tries - 1)

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
        life = node.life
        self._world.clock.later(60, lambda: self._world.crash(node) if node.life == life else None)
        return lambda: self._back(node)

    def _pause(self) -> Undo | None:
        node = self._some()
        if node is None:
            return None
        node.pause()
        life = node.life
        return lambda: node.unpause() if node.life == life else None

    def _slow_disk(self) -> Undo | None:
        node = self._some()
        if node is None:
            return None
        node.write_ms = 150

        def undo() -> None:
            node.write_ms = 2

        return undo

    def _role_dies(self) -> Undo | None:
        self._workload.kill_role()
        return None

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
