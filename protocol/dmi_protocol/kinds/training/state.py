"""A training in the replicated state."""

from collections.abc import Collection, Iterable, Iterator

from msgspec import Struct, field
from msgspec.structs import replace

from dmi_protocol.cluster.command import Placement, TrainingSpec
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.job import ENDED, Job
from dmi_protocol.messages.roles import Assignment, RoleKey


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


class TrainingJob(Job, tag="training"):
    """``assignment`` says what the processes that are placed do in the generation in force."""

    spec: TrainingSpec
    assignment: Assignment | None = None
    runs: bool = False
    """Were all processes of this start ready together?"""
    ready: tuple[RoleKey, ...] = ()
    """The recruited workers that have caught up."""
    synced: tuple[tuple[int, int], ...] = ()
    """By shard: servers that have caught up since the last ``Reassign``."""
    pairs: tuple[Pair, ...] = ()
    """What was reported since the last ``Reassign``."""
    busy: tuple[RoleKey, ...] = ()
    """Processes that give no sign, and compute: nobody is replaced because of them."""
    completed: tuple[RoleKey, ...] = ()
    parts: dict[int, tuple[KeptPart, ...]] = field(default_factory=dict)
    """By step: parts of checkpoints that are not whole yet."""
    final_parts: dict[int, tuple[KeptPart, ...]] = field(default_factory=dict)
    """The same of the final one. A shard may tell its last checkpoint and its final part for the same step."""
    checkpoint: Checkpoint | None = None
    final: bool = False
    """Is ``checkpoint`` the final one?"""
    step: int | None = None
    loss: float | None = None
    checkpoint_holders: tuple[NodeId, ...] = ()
    """The i-th has a second copy of each part of the i-th shard; empty where nobody else is there."""
    holder_changes: int = 0
    """How often the checkpoint holders were changed."""
    restore: int | None = None
    """The step of the checkpoint that the placement in force began from; None: from the initial weights."""
    has_run: bool = False
    """Were all roles of any placement ready?"""

    def takes(self, placements: Iterable[Placement]) -> list[NodeId]:
        """Once of each node, whatever processes it has there."""
        return sorted({placement.node for placement in placements})

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

    def kept(self) -> Iterator[tuple[BlobHash, tuple[NodeId, ...]]]:
        """Every part of a checkpoint that is spoken of, and who is said to have it."""
        whole = self.checkpoint.parts if self.checkpoint is not None else ()
        for parts in (*self.parts.values(), *self.final_parts.values(), whole):
            for part in parts:
                yield part.blob, part.nodes

    def hold(self, blob: BlobHash, node: NodeId) -> None:
        """``node`` has a further copy of the files, or of a part of the checkpoint."""
        super().hold(blob, node)
        if self.checkpoint is not None:
            parts = tuple(
                replace(part, nodes=tuple(dict.fromkeys((*part.nodes, node)))) if part.blob == blob else part
                for part in self.checkpoint.parts
            )
            self.checkpoint = replace(self.checkpoint, parts=parts)

    def blobs(self) -> dict[BlobHash, tuple[NodeId, ...]]:
        """What must not be lost, and who has it: the files while the job goes on, and the last checkpoint."""
        parts = self.checkpoint.parts if self.checkpoint is not None else ()
        files = {} if self.state in ENDED else {self.bundle: self.holders}
        return files | {part.blob: part.nodes for part in parts}
