"""How much memory this host could still give to processes."""

import re
from pathlib import Path

_AVAILABLE = re.compile(r"^MemAvailable: +(\d+) kB$", re.MULTILINE)


def available_bytes(meminfo: str | None = None) -> int | None:
    """As the kernel estimates it in ``/proc/meminfo``, or in a text like it; None where that does not say."""
    try:
        text = Path("/proc/meminfo").read_text() if meminfo is None else meminfo
    except OSError:
        return None
    found = _AVAILABLE.search(text)
    return None if found is None else int(found[1]) * 1024
