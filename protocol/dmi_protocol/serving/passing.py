"""What a replica with a stage of a model passes on, and what becomes of it: pure, like the router that it has within it.

A batch that was passed on is one request to the router of a gateway, which is never joined with others. Where a replica of the
next stage is lost, what it had not begun goes to another one, or waits for one; a batch that it was computing goes back, and so
does one for whose version there is nobody any more: the gateway sends both again from the first stage on, and knows better whom
to blame.
"""

from collections.abc import Iterable
from random import Random

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.instant import Instant
from dmi_protocol.serving import events as on
from dmi_protocol.serving.events import ReplicaId, RouterEffect
from dmi_protocol.serving.router import Router, RouterSettings


class PassOn(Struct, frozen=True):
    """A batch of so many rows, which this version of our stage has computed. ``number`` was never used before."""

    number: int
    rows: int
    version: str
    until: Instant
    size_bytes: int = 0


class GoesBack(Struct, frozen=True):
    """Whoever gave us this batch is to hear of it: that it is computed; or, where ``has_died``, that a process died of it; or
    otherwise that nobody has begun it."""

    number: int
    is_computed: bool = False
    has_died: bool = False


PassingEvent = PassOn | on.FleetTold | on.Opened | on.Broke | on.Heard | on.Computed | on.Died | on.Declined
PassingEffect = on.Dispatch | GoesBack


class Passing:
    """``stages`` is how many come after ours. See ``Router`` for what the shell must do."""

    def __init__(self, stages: int, random: Random) -> None:
        self._router = Router(RouterSettings(limits.BATCH_ROWS, 0, exact=True, stages=stages, deaths=1), random)
        self._passed: dict[int, PassOn] = {}

    @property
    def versions(self) -> frozenset[str]:
        """Those that somebody of the next stages has, and of all after it."""
        return self._router.versions

    @property
    def known(self) -> Iterable[ReplicaId]:
        """Those that may still say something that counts."""
        return self._router.known

    @property
    def batches(self) -> int:
        """How many were passed on and are under way."""
        return len(self._passed)

    @property
    def rows(self) -> int:
        """Theirs."""
        return sum(passed.rows for passed in self._passed.values())

    @property
    def is_full(self) -> bool:
        """Is enough under way? Whoever computes for us waits then: what was computed already is always taken."""
        return sum(passed.size_bytes for passed in self._passed.values()) >= limits.PASSED_BYTES

    def has(self, version: str) -> bool:
        """Is anything under way that this version has computed?"""
        return any(passed.version == version for passed in self._passed.values())

    def deadline(self) -> Instant | None:
        """When ``tick`` is wanted."""
        return self._router.deadline()

    def tick(self, now: Instant) -> list[PassingEffect]:
        """What is due."""
        return self._done(now, self._router.tick(now))

    def step(self, now: Instant, event: PassingEvent) -> list[PassingEffect]:
        """Take one event in and give the work that follows from it."""
        match event:
            case PassOn(number, rows, version, until):
                self._passed[number] = event
                return self._done(now, self._router.step(now, on.Arrived(number, rows, None, until, (version,))))
            case _:
                return self._done(now, self._router.step(now, event))

    def number(self, replica: ReplicaId, batch: int) -> int | None:
        """What a replica has in hand under this number of its own; None where it was given up."""
        pieces = self._router.batch(replica, batch)
        return pieces[0].request if pieces and pieces[0].request in self._passed else None

    def check(self) -> None:
        """Assert the invariants."""
        self._router.check()
        assert self._router.waiting == len(self._passed)

    def _done(self, now: Instant, effects: list[RouterEffect]) -> list[PassingEffect]:
        return [*self._told(effects), *self._without_version(now)]

    def _told(self, effects: list[RouterEffect]) -> list[PassingEffect]:
        found: list[PassingEffect] = []
        for effect in effects:
            match effect:
                case on.Answer(number):
                    found += self._back(GoesBack(number, is_computed=True))
                case on.Refuse(number, why):
                    found += self._back(GoesBack(number, has_died=isinstance(why, on.Killed)))
                case on.Dispatch():
                    found.append(effect)
        return found

    def _without_version(self, now: Instant) -> list[PassingEffect]:
        """What nobody has the version for, though somebody is there, goes back."""
        there = self.versions
        lost = [number for number, each in self._passed.items() if there and each.version not in there]
        found: list[PassingEffect] = []
        for number in lost:
            found += self._back(GoesBack(number))
            found += self._told(self._router.step(now, on.Abandoned(number)))
        return found

    def _back(self, back: GoesBack) -> list[PassingEffect]:
        return [back] if self._passed.pop(back.number, None) is not None else []
