"""How much memory this host has, and could still give to processes."""

import re
from pathlib import Path

_LINE = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container, in the second and the first version of control groups."""


def available_bytes(meminfo: str | None = None) -> int | None:
    """As the kernel estimates it in ``/proc/meminfo``, or in a text like it; None where that does not say."""
    return _found("MemAvailable", meminfo)


def total_bytes(meminfo: str | None = None, limits: tuple[str, ...] = _LIMITS) -> int | None:
    """What the kernel manages, or what this container may have of it, as ``limits`` (files) say; None where nothing is said."""
    said = [_found("MemTotal", meminfo), *(_limit(Path(path)) for path in limits)]
    return min((size for size in said if size is not None), default=None)


def _found(name: str, meminfo: str | None) -> int | None:
    try:
        text = Path("/proc/meminfo").read_text() if meminfo is None else meminfo
    except OSError:
        return None
    return next((int(size) * 1024 for what, size in _LINE.findall(text) if what == name), None)


def _limit(path: Path) -> int | None:
    """Where there is none it is "max", or larger than any memory."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
