"""Role processes that do nothing for a while, and what their daemons make of it."""

from collections.abc import Callable
from typing import Any

from dmi_protocol import limits
from dmi_protocol.jobs.signs import Signs
from tests.simulation.clock import Clock
from tests.simulation.process import Process, exits, tell_daemon

_SETTLED_MS = 2 * limits.ROLE_BUSY_MS
"""So long after it is back its daemon has said all that there is to say."""


class Holding:
    """What is to happen in a process that is held happens when it is let go, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[Process, list[tuple[Callable[..., None], tuple[Any, ...]]]] = {}

    def holds(self, process: Process) -> bool:
        """Does it do nothing?"""
        return process in self._waiting

    def hold(self, process: Process, for_ms: int, *, computes: bool) -> None:
        """Either one call keeps the interpreter's lock and ``computes``, or a signal has stopped the process."""
        if process in self._waiting:
            return
        self._waiting[process] = []
        signs = Signs()
        signs.gave(self._clock.now)
        self._clock.later(for_ms, self.release, process)
        self._look(process, signs, self._clock.now + for_ms + _SETTLED_MS, computes)

    def release(self, process: Process) -> None:
        """It goes on."""
        for act, arguments in self._waiting.pop(process, ()):
            if process.is_alive:
                act(*arguments)

    def release_all(self) -> None:
        """All go on."""
        for process in list(self._waiting):
            self.release(process)

    def act(self, process: Process, act: Callable[..., None], *arguments: Any) -> None:
        """Now, or when it is let go."""
        if process in self._waiting:
            self._waiting[process].append((act, arguments))
        else:
            act(*arguments)

    def _look(self, process: Process, signs: Signs, until: int, computes: bool) -> None:
        """As its daemon does."""
        if not process.is_alive or process.boot_count != process.node.boot_count or self._clock.now > until:
            return
        if not self.holds(process):
            signs.gave(self._clock.now)
        told = signs.look(self._clock.now, self._clock.now / 1000 if computes else 0.0)
        if told is not None:
            tell_daemon(process, self._clock, told)
        if signs.stands_still(self._clock.now):
            exits(process, 0, 9, stalled=True)
        self._clock.later(limits.ROLE_BEAT_MS, self._look, process, signs, until, computes)
