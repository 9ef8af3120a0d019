"""The sockets between role processes.

Their connections are like TCP: in order, nothing lost, but standing still while the network between the hosts is cut.
What the machines say twice on purpose is also delivered twice by chance.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.training import exchange as x
from tests.simulation.clock import Clock
from tests.simulation.holding import Holding
from tests.simulation.network import Network
from tests.simulation.process import Process, Said
from tests.simulation.trouble import Violation

BUCKETS = 3
_CUT_MS = 100
_REPEATED = 0.08
HELD = 4_096
"""No role process ever has more tensors, or a fuller socket."""


class Sockets:
    """Every connection between living role processes."""

    def __init__(self, clock: Clock, network: Network, counters: Counter[str]) -> None:
        self.clock = clock
        self.counters = counters
        self._network = network
        self.processes: dict[PublicKey, Process] = {}
        self.seen: dict[tuple[str, int, int], int] = {}
        """By job, start generation and bucket: the last version that a worker was shown."""
        self.holders: dict[RoleKey, Process] = {}
        """The last process that was started for each role."""
        self.holding = Holding(clock)
        self.silent: set[frozenset[str]] = set()
        """Hosts between which role processes do not hear each other, though daemons do."""
        self._ways: dict[tuple[PublicKey, PublicKey], deque[Said]] = {}
        self._pumped: set[tuple[PublicKey, PublicKey]] = set()
        """Ways that something is under way on, or was when they were reset."""

    def say(self, source: Process, target: PublicKey, said: Said) -> None:
        """Send; what can be repeated is repeated by chance."""
        way = self._ways.setdefault((source.public_key, target), deque())
        is_idle = (source.public_key, target) not in self._pumped
        way.append(said)
        repeatable = isinstance(said.event, x.Contributed | x.Shown | x.Pulled | x.NormsHeard)
        if repeatable and self.clock.random.random() < _REPEATED:
            way.append(said)
        if len(way) > HELD:
            raise Violation("queues", f"{len(way)} messages wait at {source.key}")
        if is_idle:
            self._plan(source, target)

    def later(self, process: Process, delay_ms: int, act: Callable[..., None], *arguments: Any) -> None:
        """Something that a process does after so much time, or when it can."""
        self.clock.later(max(0, delay_ms), self.holding.act, process, act, *arguments)

    def heal(self) -> None:
        """Everybody hears, and nobody is held."""
        self.silent.clear()
        self.holding.release_all()

    def is_open(self, one: Process, other: Process) -> bool:
        """Could they speak to each other now?"""
        ends = (one.node.name, other.node.name)
        return self._network.is_open(*ends) and self._network.is_open(*reversed(ends))

    def reset(self, host: str) -> None:
        """All connections of a host are made anew: what was on its way is lost, though all processes live."""
        for (source, target), way in self._ways.items():
            ends = {self.processes[key].node.name for key in (source, target) if key in self.processes}
            if host in ends:
                self.counters["messages reset"] += len(way)
                way.clear()

    def _plan(self, source: Process, target: PublicKey) -> None:
        self._pumped.add((source.public_key, target))
        self.clock.later(self._network.delay_ms(), self._pump, source, target)

    def _pump(self, source: Process, target: PublicKey) -> None:
        way = self._ways[source.public_key, target]
        self._pumped.discard((source.public_key, target))
        heard = self.processes.get(target)
        if source.boot_count != source.node.boot_count or heard is None or not heard.is_alive:
            way.clear()
            return
        ends = source.node.name, heard.node.name
        if not self._network.is_open(*ends) or frozenset(ends) in self.silent or self.holding.holds(heard):
            self._pumped.add((source.public_key, target))
            self.clock.later(_CUT_MS, self._pump, source, target)
            return
        for said in [way.popleft() for _ in range(min(len(way), 4))]:
            if heard.is_alive:  # and is not held: nothing holds a process in its own turn
                heard.hear(source.key, said)
        if way and (source.public_key, target) not in self._pumped:
            self._plan(source, target)


def owned(shard: int, shards: int) -> tuple[int, ...]:
    """The buckets of a shard."""
    return tuple(range(shard, BUCKETS, shards))
