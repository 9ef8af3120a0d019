"""The processes of this host, by session: a role process begins one, and whatever it starts is in it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Process(NamedTuple):
    """As the kernel numbers them."""

    pid: int
    parent: int
    session: int


def processes() -> Iterator[Process]:
    """All that there are."""
    for entry in os.scandir(_PROC):
        if entry.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                fields = (_PROC / entry.name / "stat").read_text().rpartition(")")[2].split()
                yield Process(int(entry.name), int(fields[1]), int(fields[3]))


def directory_of(pid: int) -> Path | None:
    """Where it works; None when it has ended."""
    try:
        return (_PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def memory_of(pid: int) -> int:
    """The bytes that it alone makes necessary: what several processes share is counted to each in part (proportional set size),
    and what lies in files is not counted, because it can be read again. 0 when it has ended."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    parts = [line.split() for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:", "SwapPss:"))]
    return sum(int(part[1]) for part in parts) * 1024


def confine(pid: int, cores: frozenset[int], before: frozenset[int]) -> None:
    """All threads of a process run on ``cores`` alone. One that has chosen some of these itself is left as it is; ``before`` is
    what it was confined to last."""
    for thread in _threads(pid):
        with suppress(OSError):
            now = os.sched_getaffinity(thread)
            if now != cores and (now == before or not now <= cores):
                os.sched_setaffinity(thread, cores)


def be_nice(pid: int, level: int) -> None:
    """All threads of a process give way to others. A session may be a group of its own for the kernel, which is nice as a
    whole."""
    for thread in _threads(pid):
        with suppress(OSError):  # who was nice once may not be less so without the right to
            if os.getpriority(os.PRIO_PROCESS, thread) != level:
                os.setpriority(os.PRIO_PROCESS, thread, level)
    with suppress(OSError):
        (_PROC / str(pid) / "autogroup").write_text(str(level))


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in (_PROC / str(pid) / "task").iterdir()]
    except OSError:
        return []
