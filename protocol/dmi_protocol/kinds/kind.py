"""What a kind of job must say of itself. Whatever is the same for all jobs asks it here."""

from collections.abc import Collection, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from dmi_protocol.cluster.command import BindRole, Command, Finish, KindCommand, LoseRole, Place
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash, NodeId, RequestId
from dmi_protocol.kinds.job import Job
from dmi_protocol.messages.roles import Fleet, Launch, Progressed, RoleEvent, RoleKey, Roster, Slices
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import Loss, Reason

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

    def unlike(self, job: OfKind, command: BindRole, node: str) -> Loss | None:
        """Why a process that is ready on the host of this name cannot take part: its results would differ."""
        ...

    def bound(self, job: OfKind, command: BindRole) -> None:
        """A process is bound."""
        ...

    def is_safe_without(self, job: OfKind, role: RoleKey) -> bool:
        """Is the loss of this process none: is its work done, and kept?"""
        ...

    def is_of_use(self, job: OfKind, role: RoleKey) -> bool:
        """Has it begun to do its part? If not, its loss costs the job nothing."""
        ...

    def reached(self, job: OfKind, command: LoseRole) -> int:
        """How far it was when a process was lost: a job that crashes on and on without getting any further is given up."""
        ...

    most_failures: int | None
    """How often processes may fail, for whatever reason, without the job getting any further; None where that may pass, however
    long it takes."""

    def gave_up(self, job: OfKind) -> None:
        """The job has failed: it crashed too often."""
        ...

    def lost(self, job: OfKind, role: RoleKey, reason: Loss) -> None:
        """A process is lost, and not among the placements any more."""
        ...

    def finished(self, job: OfKind, command: Finish) -> None:
        """The job is over."""
        ...

    def apply(self, job: OfKind, command: KindCommand) -> bool:
        """A command that is one of this kind alone, or of another: did it change anything?"""
        ...


class Plans(Protocol[OfKind]):
    """What a job of this kind needs next: pure; the coordinator's scheduler asks. ``there`` are the live members that play
    roles, ``nodes`` those of them that are not leaving, ``room`` what each has left."""

    def place(self, job: OfKind, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """Start it, if there are nodes enough; what it takes is taken of ``room``."""
        ...

    def finish(self, job: OfKind, there: list[NodeId]) -> list[Command]:
        """End it, if it is done."""
        ...

    def hopeless(self, job: OfKind, state: ClusterState) -> Reason | None:
        """Why it can never go on, beside that its own files are lost."""
        ...

    def part(self, job: OfKind, state: ClusterState) -> list[Command]:
        """Of processes that cannot talk to each other, lose one."""
        ...

    def follow(self, job: OfKind, state: ClusterState) -> list[Command]:
        """What it does since something else in the state is new."""
        ...

    def keep_up(self, job: OfKind, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """What its processes do from now on, and who is missing."""
        ...


class Host(Struct, frozen=True):
    """This host, for its role processes: ``address`` is the one to bind, ``ports`` the range (first, last) for data sockets."""

    node: NodeId
    name: str
    address: str
    ports: tuple[int, int]


class Processes(Protocol[OfKind]):
    """The role processes of a job of this kind on one node; ``jobs/hosting.py`` runs them."""

    def needs(self, job: OfKind, role: RoleKey) -> tuple[BlobHash, ...]:
        """What must be on this host's disk before it can start, beside the job's files."""
        ...

    def inputs(self, job: OfKind, role: RoleKey) -> tuple[BlobHash, ...]:
        """What must be on this host's disk before it is told what there is to tell now."""
        ...

    def launch(self, job: OfKind, role: RoleKey, host: Host, needs: tuple[BlobHash, ...]) -> Launch:
        """The first message to it."""
        ...

    def told(
        self, job: OfKind, role: RoleKey, since: int, *, has_inputs: bool
    ) -> tuple[int, Roster | Slices | Fleet] | None:
        """What it is to be told now, and a number that grows with what there is to tell. It was told what there was at
        ``since``, which is 0 before it was told anything; None while there is nothing else. ``has_inputs`` says that all its
        ``inputs`` are on this host's disk."""
        ...

    def keeps(self, job: OfKind, node: NodeId) -> Iterator[tuple[BlobHash, Command]]:
        """What ``node`` is to have copies of while the job goes on, and the fact that it tells when it has."""
        ...

    def is_leased(self, role: RoleKey) -> bool:
        """Does it work only while its node knows of a quorum?"""
        ...

    def is_safe_without(self, job: OfKind, role: RoleKey) -> bool:
        """Is its work done and kept, so that nobody need hear that its process was of a daemon before this one?"""
        ...

    def says(self, role: RoleKey, event: RoleEvent, node: NodeId, progress: Progressed | None) -> list[Command]:
        """What the others must learn of what it said on ``node``; ``progress`` is what it told last."""
        ...


class Counts(Struct, frozen=True):
    """How far a job is; None where that is not known, or means nothing."""

    step: int | None = None
    steps: int | None = None
    samples_per_second: float | None = None
    loss: float | None = None
    failed_inputs: int | None = None


class Views(Protocol[OfKind]):
    """What is shown of a job of this kind; ``view.py`` asks."""

    def counts(self, job: OfKind, progress: Progressed | None) -> Counts:
        """How far it is. ``progress`` is what was gossiped last."""
        ...

    def wanted_nodes(self, job: OfKind) -> int:
        """How many nodes must be alive before it can start."""
        ...

    def lacks(self, job: OfKind) -> int:
        """Of how many nodes it needs a share that it has not, before it can run at all."""
        ...

    def running(self, job: OfKind) -> Reason:
        """Who does what, while all is well."""
        ...

    def weakened(self, job: OfKind, loss: Loss) -> Reason:
        """What is missing since ``loss``, though it runs."""
        ...

    def away(self, job: OfKind, alive: Collection[NodeId]) -> tuple[NodeId, ...]:
        """Who must come back before it can go on."""
        ...

    def recovering(self, job: OfKind, loss: Loss, away: tuple[str, ...]) -> Reason:
        """What becomes of it after ``loss``; ``away`` are the names of those who must come back."""
        ...

    def shards(self, job: OfKind, role: RoleKey) -> tuple[tuple[int, bool], ...]:
        """What a process holds of what the job is made of, and whether it leads there."""
        ...


class Kind(NamedTuple, Generic[OfKind]):
    """A kind of job: its name for people, and all that is said of it."""

    name: str
    commands: Commands[OfKind]
    plans: Plans[OfKind]
    processes: Processes[OfKind]
    views: Views[OfKind]


def request_of(role: RoleKey, what: str) -> RequestId:
    """Names what a process says, so that saying it twice does it once."""
    return RequestId(f"{role.job}/{role.generation}/{role.name}/{what}")
