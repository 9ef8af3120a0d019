"""A role process: what it hears, what it says to others, and its pipe to the daemon."""

from typing import NamedTuple, Protocol

from dmi_protocol.events import RoleHappened
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.roles import Exited, Lease, RoleEvent, RoleKey, Roster
from tests.simulation.clock import Clock
from tests.simulation.node import Node
from tests.simulation.tensors import Tensor


class Filled(NamedTuple):
    """A primary tells a server what it is to have a copy of."""

    definition: bytes
    fields: tuple[tuple[str, str], ...]


class Replica(NamedTuple):
    """A primary's root, for its copies."""

    step: int
    bucket: int
    hyper: bytes


class Bucketful(NamedTuple):
    """A bucket for a copy."""

    bucket: int
    version: int


class Beat(NamedTuple):
    """A worker is there, or the server that it said so to."""


class Said(NamedTuple):
    """What one role process sends to another about a shard; ``tensor`` goes beside the event, or the version that is shown.
    Only what servers say to each other is fenced by ``generation``."""

    shard: int
    generation: int
    event: object
    tensor: Tensor | None = None
    shown: int | None = None


class Process(Protocol):
    """A living role process."""

    key: RoleKey
    public_key: PublicKey
    node: Node
    boot_count: int
    """That of its daemon: what a process said before it ended still arrives, unless the whole host is gone."""
    is_alive: bool

    def roster(self, roster: Roster) -> None:
        """All roles are bound, or somebody does something else now."""
        ...

    def lease(self, lease: Lease) -> None:
        """Its node knows of a quorum."""
        ...

    def hear(self, sender: RoleKey, said: Said) -> None:
        """Another role process says something."""
        ...


def tell_daemon(process: Process, clock: Clock, event: RoleEvent) -> None:
    """Through the pipe to the parent: in order, and only while both live."""
    node, boot_count = process.node, process.node.boot_count
    clock.later(1, _tell, node, boot_count, RoleHappened(process.key, event))


def _tell(node: Node, boot_count: int, event: RoleHappened) -> None:
    if node.boot_count == boot_count:
        node.give(event)


def exits(process: Process, code: int, signal: int = 0, *, stalled: bool = False) -> None:
    """The process ends, and its parent sees it."""
    if process.is_alive:
        process.is_alive = False
        _tell(process.node, process.node.boot_count, RoleHappened(process.key, Exited(code, signal, stalled)))
