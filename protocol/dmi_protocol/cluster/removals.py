"""Removals that the coordinator holds back until the member votes no more.

A vote is handed over first: a mesh whose only voter was removed could never agree on anything again.
"""

from collections.abc import Set

from dmi_protocol.cluster.command import Remove
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after

HOLD_MS = 10_000
"""After so long without a successor the member stays what it is; whoever asked has been told by then."""


class Removals:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[NodeId, tuple[Remove, Instant]] = {}

    def hold(self, now: Instant, command: Remove) -> None:
        """Not before its vote is another's. Asking again is the same wish, and makes it last no longer."""
        self._held.setdefault(command.node, (command, after(now, HOLD_MS)))

    def going(self, now: Instant) -> frozenset[NodeId]:
        """Who should vote no more."""
        self._held = {node: held for node, held in self._held.items() if now < held[1]}
        return frozenset(self._held)

    def ready(self, needed: Set[NodeId]) -> list[Remove]:
        """The removals of those who are not ``needed`` any more; given once."""
        ready = [command for node, (command, _) in self._held.items() if node not in needed]
        self._held = {node: held for node, held in self._held.items() if node in needed}
        return ready

    def forget(self) -> None:
        """Another node coordinates now, and is asked by whoever asked us."""
        self._held.clear()
