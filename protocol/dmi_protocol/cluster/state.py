"""The replicated state: everything that must survive, and nothing else. Equal at equal index on every node."""

import hashlib
from collections.abc import Collection

import msgpack
from msgspec import Struct, field

from dmi_protocol.cluster.command import JobSpec, Placement
from dmi_protocol.codec import convert, pack
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.messages.roles import Assignment, Endpoint, RoleKey
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
    draining: bool = False
    """It gets no new roles, and those that it has move away."""


class EndpointRecord(Struct, frozen=True):
    """A bound role process."""

    endpoint: Endpoint
    pid: int


class KeptPart(Struct, frozen=True):
    """A shard's part of a checkpoint, and the nodes on whose disks it is."""

    shard: int
    blob: BlobHash
    size_bytes: int
    nodes: tuple[NodeId, ...]


class Checkpoint(Struct, frozen=True):
    """All parts of one step."""

    step: int
    parts: tuple[KeptPart, ...]


class Pair(Struct, frozen=True):
    """Two processes that cannot talk."""

    role: RoleKey
    peer: RoleKey
    silent_ms: int


class Job(Struct):
    """One job. ``placements`` are the role processes that are wanted, in order; there are none while the job waits for nodes.
    ``assignment`` says what they do in ``generation``, which is 0 before the first."""

    id: JobId
    spec: JobSpec
    bundle: BlobHash
    holders: tuple[NodeId, ...]
    submitted_at: int
    """The index of the log entry that submitted it: the order of the queue."""
    state: JobState = QUEUED
    generation: int = 0
    start_generation: int = 0
    """The generation in which the processes were last started anew."""
    placements: tuple[Placement, ...] = ()
    assignment: Assignment | None = None
    runs: bool = False
    """Were all processes of this start ready together?"""
    misses: dict[NodeId, int] = field(default_factory=dict)
    """By node: recruits that ended there before they were of use, and processes that could not talk to others."""
    next_index: int = 0
    """The index of the next process that is recruited."""
    born: int = 0
    """The generation that the last recruits were made for: the next start comes after it, so that no two processes have one
    key."""
    ready: tuple[RoleKey, ...] = ()
    """The recruited workers that have caught up."""
    synced: tuple[tuple[int, int], ...] = ()
    """By shard: servers that have caught up since the last ``Reassign``."""
    pairs: tuple[Pair, ...] = ()
    """What was reported since the last ``Reassign``."""
    endpoints: tuple[EndpointRecord, ...] = ()
    completed: tuple[RoleKey, ...] = ()
    parts: dict[int, tuple[KeptPart, ...]] = field(default_factory=dict)
    """By step: parts of checkpoints that are not whole yet."""
    final_parts: dict[int, tuple[KeptPart, ...]] = field(default_factory=dict)
    """The same of the final one. A shard may tell its last checkpoint and its final part for the same step."""
    checkpoint: Checkpoint | None = None
    final: bool = False
    """Is ``checkpoint`` the final one?"""
    reason: Reason | None = None
    step: int | None = None
    loss: float | None = None
    checkpoint_holders: tuple[NodeId, ...] = ()
    """The i-th has a second copy of each part of the i-th shard; empty where nobody else is there."""
    holder_changes: int = 0
    """How often the checkpoint holders were changed."""
    copies: dict[BlobHash, NodeId] = field(default_factory=dict)
    """Who is to keep a further copy of a blob, and has not told that it does."""
    recopied: int = 0
    """How often such a copy was asked for."""
    restore: int | None = None
    """The step of the checkpoint that the placement in force began from; None: from the initial weights."""
    has_run: bool = False
    """Were all roles of any placement ready?"""
    reached: int = -1
    """The furthest step at which a role process crashed."""
    crashes: int = 0
    """How often one crashed since the job got any further: incidents, whatever fell with it."""
    crashed_in: int = 0
    """The generation of the last such incident: what was started before it may be of it, too."""

    @property
    def is_placed(self) -> bool:
        """Is a placement in force?"""
        return bool(self.placements)

    @property
    def goes_on(self) -> bool:
        """Are its role processes wanted?"""
        return self.is_placed and self.state not in ENDED

    @property
    def all_completed(self) -> bool:
        """Has the script of every worker that had a share come to its end, and been told that the last version is safe?"""
        if self.assignment is None:
            return False
        there = {placement.role.index for placement in self.placements if placement.role.role == "worker"}
        done = {role.index for role in self.completed if role.role == "worker"}
        able = {worker for worker, speed in zip(self.assignment.workers, self.assignment.speeds, strict=True) if speed}
        return bool(able & there) and able & there <= done

    def is_done(self, role: RoleKey) -> bool:
        """Does nobody need this role any more? A server's last words to a worker may be lost with its host."""
        return role in self.completed if role.role == "worker" else self.all_completed

    def shards_of(self, server: int) -> tuple[int, ...]:
        """The shards that this server is the primary of."""
        shards = self.assignment.shards if self.assignment is not None else ()
        return tuple(shard for shard, replicas in enumerate(shards) if replicas.primary == server)

    def primaries(self) -> tuple[NodeId, ...]:
        """By shard: the node of its primary; an empty name when that is lost."""
        nodes = {
            placement.role.index: placement.node for placement in self.placements if placement.role.role == "server"
        }
        shards = self.assignment.shards if self.assignment is not None else ()
        return tuple(nodes.get(replicas.primary, NodeId("")) for replicas in shards)

    def parts_away(self, alive: Collection[NodeId]) -> tuple[NodeId, ...]:
        """The nodes that alone have parts of the checkpoint, while none of those who have such a part is alive."""
        parts = self.checkpoint.parts if self.checkpoint is not None else ()
        return tuple(sorted({node for part in parts if not set(part.nodes) & set(alive) for node in part.nodes}))

    def blobs(self) -> dict[BlobHash, tuple[NodeId, ...]]:
        """What must not be lost, and who has it: the files while the job goes on, and the last checkpoint."""
        parts = self.checkpoint.parts if self.checkpoint is not None else ()
        files = {} if self.state in ENDED else {self.bundle: self.holders}
        return files | {part.blob: part.nodes for part in parts}

    def roles(self) -> tuple[tuple[RoleKey, NodeId], ...]:
        """Every wanted role process, and its node: servers first."""
        return tuple([(placement.role, placement.node) for placement in self.placements])


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
