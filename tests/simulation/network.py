"""A network that loses, delays, repeats and reorders messages, and that can be cut, in one direction too."""

from collections.abc import Callable
from typing import Any

from dmi_protocol import limits
from tests.simulation.clock import Clock
from tests.simulation.trouble import Violation

Way = tuple[str, str]


class Network:
    """Ways are pairs of names: from whom, to whom."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.cut: dict[Way, int] = {}
        """How many faults cut this way now."""
        self.loss = 0.0
        self.repeat = 0.0
        self.slowness_ms = 0
        self.lost = 0
        self.repeated = 0
        self._waiting: dict[Way, int] = {}

    def is_open(self, source: str, target: str) -> bool:
        """Does anything get through at all?"""
        return not self.cut.get((source, target))

    def close_way(self, source: str, target: str) -> None:
        """Cut one direction, until it is opened as often."""
        self.cut[source, target] = self.cut.get((source, target), 0) + 1

    def open_way(self, source: str, target: str) -> None:
        """Undo one cut."""
        self.cut[source, target] = max(0, self.cut.get((source, target), 0) - 1)

    def heal(self) -> None:
        """A perfect network from now on."""
        self.cut.clear()
        self.loss = self.repeat = 0.0
        self.slowness_ms = 0

    def delay_ms(self) -> int:
        """How long a message takes now; each one draws its own, so they overtake one another."""
        random = self._clock.random.random
        return 1 + int(4 * random()) + (int(self.slowness_ms * random()) if self.slowness_ms else 0)

    def send(self, source: str, target: str, deliver: Callable[..., None], *what: Any) -> None:
        """Call ``deliver(*what)`` when the message arrives, if it does."""
        chance = self._clock.random.random
        if self.cut.get((source, target)) or (self.loss and chance() < self.loss):
            self.lost += 1
            return
        copies = 1
        if self.repeat and chance() < self.repeat:
            copies = 2
            self.repeated += 1
        way = (source, target)
        for _ in range(copies):
            waiting = self._waiting.get(way, 0) + 1
            self._waiting[way] = waiting
            if waiting > limits.MESH_QUEUE_MESSAGES:
                raise Violation("queues", f"{waiting} messages wait from {source} to {target}")
            self._clock.later(self.delay_ms(), self._arrive, way, deliver, what)

    def _arrive(self, way: Way, deliver: Callable[..., None], what: tuple[Any, ...]) -> None:
        self._waiting[way] -= 1
        deliver(*what)
