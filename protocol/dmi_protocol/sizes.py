"""Numbers of bytes as people write and read them: ``50GB``, ``800 MB``."""

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?[bB])")
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def in_bytes(text: str) -> int | None:
    """None where it is no such number."""
    found = _SIZE.fullmatch(text.strip())
    return None if found is None else int(float(found[1]) * _UNITS[found[2].upper()])


def in_words(size: int) -> str:
    """``1.4 MB``."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, (len(str(size)) - 1) // 3))
    return f"{size} B" if power == 0 else f"{size / 1000**power:.1f} {units[power]}"
