"""The replicated state: everything that must survive, and nothing else. Equal at equal index on every node."""

import hashlib

import msgpack
from msgspec import Struct, field

from dmi_protocol.cluster.command import JobSpec, Part
from dmi_protocol.codec import convert, pack
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.messages.roles import RoleKey, Seat
from dmi_protocol.reasons import Reason

JobState = str
QUEUED, STARTING, RUNNING, RECOVERING = "queued", "starting", "running", "recovering"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED})


class MemberRecord(Struct, frozen=True):
    """A member as everybody agreed to know it."""

    node: NodeId
    name: str
    address: str
    public_key: PublicKey
    witness: bool


class SeatRecord(Struct, frozen=True):
    """A bound role process."""

    seat: Seat
    pid: int


class Checkpoint(Struct, frozen=True):
    """All parts of one step."""

    step: int
    parts: tuple[Part, ...]


class Job(Struct):
    """One job. ``workers`` and ``servers`` are the placement of ``generation``, which is 0 before the first."""

    id: JobId
    spec: JobSpec
    bundle: BlobHash
    holders: tuple[NodeId, ...]
    submitted_at: int
    """The index of the log entry that submitted it: the order of the queue."""
    state: JobState = QUEUED
    generation: int = 0
    workers: tuple[NodeId, ...] = ()
    servers: tuple[NodeId, ...] = ()
    seats: tuple[SeatRecord, ...] = ()
    completed: tuple[RoleKey, ...] = ()
    parts: dict[int, tuple[Part, ...]] = field(default_factory=dict)
    """By step: parts of checkpoints that are not whole yet."""
    final_parts: tuple[Part, ...] = ()
    """The same of the final one. A shard may tell its last checkpoint and its final part for the same step."""
    checkpoint: Checkpoint | None = None
    final: bool = False
    """Is ``checkpoint`` the final one?"""
    reason: Reason | None = None
    step: int | None = None
    loss: float | None = None

    def roles(self) -> tuple[tuple[RoleKey, NodeId], ...]:
        """Every role of the placement in force, and its node: servers first."""
        servers = [(RoleKey(self.id, self.generation, "server", i), node) for i, node in enumerate(self.servers)]
        workers = [(RoleKey(self.id, self.generation, "worker", i), node) for i, node in enumerate(self.workers)]
        return (*servers, *workers)


class Outcome(Struct, frozen=True):
    """What a command did: ``value`` for the one who asked, or the reason why it did nothing."""

    value: str = ""
    refusal: Reason | None = None


class ClusterState(Struct):
    """See the module."""

    mesh: str
    members: dict[NodeId, MemberRecord] = field(default_factory=dict)
    invitations: dict[PublicKey, int] = field(default_factory=dict)
    """The public half of each open invitation, and when it expires (Unix seconds)."""
    jobs: dict[JobId, Job] = field(default_factory=dict)
    requests: dict[RequestId, Outcome] = field(default_factory=dict)
    """The last outcomes, oldest first, so that a repeated request does a thing once."""
    applied: int = 0

    def encode(self) -> bytes:
        """All of it, for a snapshot."""
        return pack(self)

    @classmethod
    def decode(cls, data: bytes) -> "ClusterState":
        """The state in a snapshot. A snapshot is our own or the leader's, so it is not bounded as messages are."""
        found: ClusterState = convert(msgpack.unpackb(data, strict_map_key=False), cls)
        return found

    def digest(self) -> str:
        """Equal for equal states."""
        return hashlib.sha256(self.encode()).hexdigest()
