"""What all jobs have, whatever their kind."""

from collections.abc import Iterable

from msgspec import Struct, field

from dmi_protocol.cluster.command import Placement, SharingSpec
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.messages.roles import Endpoint, RoleKey
from dmi_protocol.reasons import Reason

JobState = str
QUEUED, STARTING, RUNNING, RECOVERING = "queued", "starting", "running", "recovering"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED})


class EndpointRecord(Struct, frozen=True):
    """A bound role process."""

    endpoint: Endpoint
    pid: int


class Job(Struct):
    """One job. ``placements`` are the role processes that are wanted, in order; there are none while the job waits for
    nodes. What they do in ``generation``, which is 0 before the first, is a matter of the kind."""

    id: JobId
    spec: SharingSpec
    bundle: BlobHash
    holders: tuple[NodeId, ...]
    submitted_at: int
    """The index of the log entry that submitted it: the order of the queue."""
    state: JobState = QUEUED
    generation: int = 0
    start_generation: int = 0
    """The generation in which the processes were last started anew."""
    placements: tuple[Placement, ...] = ()
    hosts: tuple[NodeId, ...] = ()
    """All nodes that processes of it were ever placed on: what they have printed is there."""
    misses: dict[NodeId, int] = field(default_factory=dict)
    """By node: recruits that ended there before they were of use, and processes that could not talk to others."""
    next_index: int = 0
    """The index of the next process that is recruited."""
    born: int = 0
    """The generation that the last recruits were made for: the next start comes after it, so that no two processes have one
    key."""
    endpoints: tuple[EndpointRecord, ...] = ()
    reason: Reason | None = None
    copies: dict[BlobHash, NodeId] = field(default_factory=dict)
    """Who is to keep a further copy of a blob, and has not told that it does."""
    asked: dict[BlobHash, int] = field(default_factory=dict)
    """How often such a copy was asked for."""
    reached: int = -1
    """The furthest step at which a role process crashed."""
    crashes: int = 0
    """How often one crashed since the job got any further: incidents, whatever fell with it."""
    failed_at: int = -1
    failures: int = 0
    """How often one failed, for whatever reason, since the job was so far; counted where the kind has a bound for it."""
    turned_away: int = 0
    """How often it was not placed as it was decided, because another job had taken the room meanwhile."""
    crashed_in: int = 0
    """The generation of the last such incident: what was started before it may be of it, too."""

    def place(self, placements: tuple[Placement, ...]) -> None:
        """These processes are wanted."""
        self.placements = placements
        self.hosts = tuple(dict.fromkeys((*self.hosts, *(placement.node for placement in placements))))

    def files(self) -> tuple[BlobHash, ...]:
        """The job's own files, which every process of it begins from, as a blob; a deployment has none."""
        return (self.bundle,) if self.bundle else ()

    def takes(self, placements: Iterable[Placement]) -> list[NodeId]:
        """The nodes of which it takes its share while these are its processes, as often as it takes it."""
        return []

    @property
    def attempt(self) -> str:
        """For the names of requests to place it: whoever was turned away asks anew."""
        return f"-{self.turned_away}" if self.turned_away else ""

    def models(self) -> tuple[str, ...]:
        """The versions of models that it computes with, by id: they stay while it goes on."""
        return ()

    def hold(self, blob: BlobHash, node: NodeId) -> None:
        """``node`` has a further copy of a blob."""
        if blob == self.bundle:
            self.holders = tuple(dict.fromkeys((*self.holders, node)))

    @property
    def is_placed(self) -> bool:
        """Is a placement in force?"""
        return bool(self.placements)

    @property
    def goes_on(self) -> bool:
        """Are its role processes wanted?"""
        return self.is_placed and self.state not in ENDED

    def roles(self) -> tuple[tuple[RoleKey, NodeId], ...]:
        """Every wanted role process, and its node: servers first."""
        return tuple([(placement.role, placement.node) for placement in self.placements])

    def is_in_force(self, generation: int) -> bool:
        """Does it go on, and is this generation one of the processes that live now?"""
        return self.goes_on and self.start_generation <= generation <= self.generation

    def wants(self, role: RoleKey) -> bool:
        """Does it want this very process?"""
        return self.goes_on and any(placement.role == role for placement in self.placements)
