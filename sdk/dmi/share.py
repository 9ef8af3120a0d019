"""What a job is promised of its nodes."""

from typing import Any

from dmi.errors import UsageError
from dmi_protocol.sizes import in_bytes


def bytes_of(memory: int | str, what: str = "memory") -> int:
    """A number of bytes, or ``2GB``. Raises ``UsageError`` that names ``what``."""
    found = in_bytes(memory) if isinstance(memory, str) else memory
    if found is None or found < 1:
        raise UsageError(f"{what} must be a size such as 800MB or 2GB, not {memory!r}")
    return found


def share(cpus: int | None, memory: int | str | None) -> dict[str, Any]:
    """As it is said to a node. Raises ``UsageError``."""
    if cpus is not None and cpus < 1:
        raise UsageError(f"cpus must be whole processors, 1 or more, not {cpus!r}")
    return {"cpus": cpus, "memory": None if memory is None else bytes_of(memory)}
