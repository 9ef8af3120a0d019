"""How much of a model a process may hold where nobody says: what is free on the hosts."""

from collections.abc import Sequence
from typing import Any

from dmi.connection import Connection
from dmi.errors import RefusedError
from dmi_protocol import limits
from dmi_wire.host_memory import available_bytes

_SPARE = 1.1
"""Stages are never quite equal."""


def free_share(connection: Connection, version: dict[str, Any]) -> int | None:
    """None where the model fits into this host's memory twice, or into some host's once; or else how many bytes each stage may
    have. Raises ``RefusedError`` where all hosts together have too little."""
    size, here = version["size_bytes"], available_bytes()
    if here is None or here >= 2 * size + limits.REPLICA_BYTES:
        return None  # what is usual: nobody need be asked
    witnesses = {each["name"] for each in connection.ask("members") if each["witness"]}
    left = [each["memory_bytes"] for each in connection.ask("df") if each["node"] not in witnesses]
    return share_of(version["id"], size, [memory - limits.REPLICA_BYTES for memory in left if memory is not None])


def share_of(name: str, size: int, free: Sequence[int]) -> int | None:
    """``free`` is what a model's weights may take on each host. As few stages as will do, each on a host of its own."""
    ordered = sorted(free, reverse=True)
    if not ordered or ordered[0] >= size:
        return None
    for stages, least in enumerate(ordered, 1):
        if stages > 1 and least * stages >= size * _SPARE:
            return least
    have = ", ".join(f"{max(0, each):,}" for each in ordered)
    raise RefusedError(
        f"{name} has {size:,} bytes, and the nodes have memory for {have} of it, which is too little in stages of about the "
        "same size: add nodes, or free some"
    )
