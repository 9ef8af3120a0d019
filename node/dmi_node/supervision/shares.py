"""Holds role processes to what their jobs were promised of this host, and keeps all others off it.

A job is promised whole processors, so they are its own: its processes run on these alone, and no other job's run there. Who was
promised none has what is left; where nothing is left it runs everywhere, and gives way (``nice``). Memory is looked at twice a
second: of who has more than it was promised the largest process is ended, as the kernel does where a host has too little.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from dmi_node.supervision import sessions
from dmi_node.supervision.cores import Cores
from dmi_node.tasks import Tasks
from dmi_protocol.capacity import Capacity
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.sizes import in_words

_LOOK_S = 0.5
_GIVES_WAY = 10
"""How nice who was promised nothing is, where all is promised to others."""
_logger = logging.getLogger("dmi.roles")


class _Held(msgspec.Struct):
    unit: str
    share: Capacity
    directory: Path
    pid: int | None = None
    cores: frozenset[int] = frozenset()
    """What it was confined to last."""
    is_nice: bool = False


class _Look(NamedTuple):
    """At one role, from a thread of its own."""

    pid: int | None
    directory: Path
    cores: frozenset[int]
    before: frozenset[int]
    niceness: int | None
    is_counted: bool


class Shares:
    """``forker`` gives the process id of the node's fork server: who computes for a replica is forked there. ``exceeds`` is
    called with a role, one of its processes, which is about to be ended, and why."""

    def __init__(
        self, tasks: Tasks, forker: Callable[[], int | None], exceeds: Callable[[RoleKey, int, str], None]
    ) -> None:
        self._tasks = tasks
        self._forker = forker
        self._exceeds = exceeds
        self._all = frozenset(os.sched_getaffinity(0))
        self._cores = Cores(self._all)
        self._held: dict[RoleKey, _Held] = {}
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def begin(self, role: RoleKey, unit: str, share: Capacity, directory: Path) -> None:
        """A process is about to start, and works below ``directory``. Those of one ``unit`` have one share together."""
        self._held[role] = _Held(unit, share, directory)
        if share.cpus:
            self._cores.take(unit, share.cpus)
        if self._is_needed and (self._keeper is None or self._keeper.done()):
            self._keeper = self._tasks.start(self._keep(), "shares")
        self._changed.set()

    def started(self, role: RoleKey, pid: int) -> None:
        """It is there, and has one thread."""
        held = self._held.get(role)
        if held is None:
            return
        held.pid = pid
        if self._is_needed:
            look = self._look(role, held)
            sessions.confine(pid, look.cores, look.before)
            held.cores = look.cores

    def end(self, role: RoleKey) -> None:
        """It is gone."""
        held = self._held.pop(role, None)
        if held is not None and all(other.unit != held.unit for other in self._held.values()):
            self._cores.give_back(held.unit)
        self._changed.set()

    @property
    def _is_needed(self) -> bool:
        return self._cores.is_promised or any(held.share.memory for held in self._held.values())

    async def look(self) -> None:
        """Now, and not only when it is time: who has more memory than it was promised loses a process."""
        if any(held.share.memory for held in self._held.values()):
            await self._look_once()

    async def _keep(self) -> None:
        """As long as anybody was promised anything, and once more."""
        while True:
            was_needed = self._is_needed
            self._changed.clear()
            try:
                await self._look_once()
            except Exception:
                _logger.exception("jobs are not held to their shares")
            if not was_needed and not self._is_needed:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_S)

    async def _look_once(self) -> None:
        looks = {role: self._look(role, held) for role, held in self._held.items()}
        sizes = await asyncio.to_thread(_look_at, looks, self._forker())
        for role, look in looks.items():
            if (held := self._held.get(role)) is not None:
                held.cores, held.is_nice = look.cores, look.niceness == _GIVES_WAY
        self._judge(sizes)

    def _look(self, role: RoleKey, held: _Held) -> _Look:
        siblings = {other.unit for key, other in self._held.items() if key.job == role.job}
        cores = self._cores.of([held.unit]) or self._cores.of(siblings) or self._cores.left
        niceness = _GIVES_WAY if not cores else 0 if held.is_nice else None
        is_counted = any(o.share.memory for o in self._held.values() if o.unit == held.unit)
        return _Look(held.pid, held.directory, cores or self._all, held.cores, niceness, is_counted)

    def _judge(self, sizes: dict[RoleKey, dict[int, int]]) -> None:
        """Who has too much loses its largest process."""
        allowed = {held.unit: held.share.memory for held in self._held.values() if held.share.memory}
        for unit, most in allowed.items():
            mine = [role for role, held in self._held.items() if held.unit == unit]
            found = {pid: (size, role) for role in mine for pid, size in sizes.get(role, {}).items()}
            used = sum(size for size, _ in found.values())
            if used > most:
                pid, (_, role) = max(found.items(), key=lambda each: each[1][0])
                why = f"it used {in_words(used)} of memory, and was promised {in_words(most)} (--memory)"
                _logger.warning("%s of %s: %s; its largest process is ended", role.name, role.job, why)
                self._exceeds(role, pid, why)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _look_at(looks: dict[RoleKey, _Look], forker: int | None) -> dict[RoleKey, dict[int, int]]:
    """Hold every process to what it may have; gives what each has of memory, where that is counted."""
    sizes: dict[RoleKey, dict[int, int]] = {role: {} for role in looks}
    for role, pid in _owned(looks, forker):
        look = looks[role]
        sessions.confine(pid, look.cores, look.before)
        if look.niceness is not None:
            sessions.be_nice(pid, look.niceness)
        if look.is_counted:
            sizes[role][pid] = sessions.memory_of(pid)
    return sizes


def _owned(looks: dict[RoleKey, _Look], forker: int | None) -> Iterator[tuple[RoleKey, int]]:
    """The processes of each role: whatever is in the session of its own process, or of one that was forked for it."""
    everybody = list(sessions.processes())
    owners = {look.pid: role for role, look in looks.items()}
    for process in everybody:
        if process.parent == forker and process.pid == process.session:
            directory = sessions.directory_of(process.pid)
            for role, look in looks.items():
                if directory is not None and directory.is_relative_to(look.directory):
                    owners[process.pid] = role
    for process in everybody:
        if process.session in owners:
            yield owners[process.session], process.pid
