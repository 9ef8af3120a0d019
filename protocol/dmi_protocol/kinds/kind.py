"""What a kind of job must say of itself. Whatever is the same for all jobs asks it here."""

from typing import Protocol, TypeVar

from dmi_protocol.cluster.command import Command, Finish, KindCommand, Place
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.job import Job
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.reasons import Loss

OfKind = TypeVar("OfKind", bound=Job, contravariant=True)


class Commands(Protocol[OfKind]):
    """What commands do to a job of this kind: total, and deterministic. ``apply`` in ``cluster/on_jobs.py`` calls it."""

    def is_placeable(self, job: OfKind, command: Place) -> bool:
        """May the job be started so?"""
        ...

    def placed(self, job: OfKind, command: Place) -> None:
        """It is."""
        ...

    def may_recruit(self, job: OfKind) -> bool:
        """May processes be added to those that there are?"""
        ...

    def bound(self, job: OfKind) -> None:
        """A process is bound."""
        ...

    def is_safe_without(self, job: OfKind, role: RoleKey) -> bool:
        """Is the loss of this process none: is its work done, and kept?"""
        ...

    def is_of_use(self, job: OfKind, role: RoleKey) -> bool:
        """Has it begun to do its part? If not, its loss costs the job nothing."""
        ...

    def gave_up(self, job: OfKind) -> None:
        """The job has failed: it crashed too often."""
        ...

    def lost(self, job: OfKind, role: RoleKey, reason: Loss) -> None:
        """A process is lost, and not among the placements any more."""
        ...

    def held(self, job: OfKind, blob: BlobHash, node: NodeId) -> None:
        """``node`` has a further copy of a blob."""
        ...

    def finished(self, job: OfKind, command: Finish) -> None:
        """The job is over."""
        ...

    def apply(self, job: OfKind, command: KindCommand) -> bool:
        """A command that is one of this kind alone, or of another: did it change anything?"""
        ...


class Plans(Protocol[OfKind]):
    """What a job of this kind needs next: pure; the coordinator's scheduler asks. ``there`` are the live members that play
    roles, ``nodes`` those of them that are not leaving, ``load`` how many roles each plays."""

    def place(self, job: OfKind, nodes: list[NodeId], there: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
        """Start it, if there are nodes enough; what it takes is added to ``load``."""
        ...

    def finish(self, job: OfKind) -> list[Command]:
        """End it, if it is done."""
        ...

    def part(self, job: OfKind, state: ClusterState) -> list[Command]:
        """Of processes that cannot talk to each other, lose one."""
        ...

    def keep_up(self, job: OfKind, nodes: list[NodeId], there: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
        """What its processes do from now on, and who is missing."""
        ...
