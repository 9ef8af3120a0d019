"""A batch inference in the replicated state."""

from collections.abc import Iterable, Iterator

from msgspec import Struct, field
from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.command import BatchSpec, Placement
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.kinds.job import ENDED, SUCCEEDED, Job
from dmi_protocol.messages.roles import Machine, RoleKey


def is_fit(spec: BatchSpec) -> bool:
    """Are its numbers those of a job?"""
    if min(spec.inputs, spec.slice_inputs, spec.per_node, spec.threads, spec.replicas or 1) <= 0:
        return False
    are_few = spec.slices <= limits.SLICES and spec.per_node <= limits.REPLICAS_PER_NODE
    return are_few and len(spec.packs) in {0, spec.slices}


class SliceResult(Struct, frozen=True):
    """What was computed for a slice, and the nodes on whose disks it is. ``failed`` of its inputs are error rows."""

    blob: BlobHash
    size_bytes: int
    failed: int
    nodes: tuple[NodeId, ...]

    def also_on(self, node: NodeId) -> "SliceResult":
        """``node`` has it, too."""
        return replace(self, nodes=tuple(dict.fromkeys((*self.nodes, node))))


class BatchJob(Job, tag="batch"):
    """A slice is open until it has a result. Leases say who computes what; they bind nobody, because a slice has the same
    result whoever computes it: the first one that is committed counts."""

    spec: BatchSpec
    leases: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By the index of a replica: the slices that it computes, in this order."""
    decided: int = 0
    """How often leases were decided on."""
    reopened: int = 0
    """How often results were lost."""
    results: dict[int, SliceResult] = field(default_factory=dict)
    """By slice."""
    useful: tuple[RoleKey, ...] = ()
    """The replicas that have committed something."""
    has_run: bool = False
    """Was a replica ever bound?"""
    machine: Machine = ()
    """What the hosts of all replicas are like."""
    packs: dict[BlobHash, tuple[NodeId, ...]] = field(default_factory=dict)
    """Inputs that travel, by the blob of a slice: who is said to have them."""

    def takes(self, placements: Iterable[Placement]) -> list[NodeId]:
        """For each replica."""
        return [placement.node for placement in placements]

    def models(self) -> tuple[str, ...]:
        """The one that it computes with."""
        return (self.spec.model.id,)

    def packs_of(self, slices: Iterable[int]) -> tuple[BlobHash, ...]:
        """The inputs of these slices; nothing where they do not travel."""
        return tuple(self.spec.packs[slice_] for slice_ in slices) if self.spec.packs else ()

    def open_slices(self) -> list[int]:
        """Those that have no result yet."""
        return [slice_ for slice_ in range(self.spec.slices) if slice_ not in self.results]

    def inputs_of(self, slice_: int) -> int:
        """How many inputs a slice has: the last one may be shorter."""
        return min(self.spec.slice_inputs, self.spec.inputs - slice_ * self.spec.slice_inputs)

    def done(self) -> int:
        """How many inputs have a result."""
        return sum(self.inputs_of(slice_) for slice_ in self.results)

    def failed(self) -> int:
        """How many of those are error rows."""
        return sum(result.failed for result in self.results.values())

    def kept(self) -> Iterator[tuple[BlobHash, tuple[NodeId, ...]]]:
        """Inputs and results that are spoken of, and who is said to have them."""
        if self.state not in ENDED:
            yield from self.packs.items()
        if self.state not in ENDED or self.state == SUCCEEDED:
            for result in self.results.values():
                yield result.blob, result.nodes

    def hold(self, blob: BlobHash, node: NodeId) -> None:
        """``node`` has a further copy of the files, of inputs, or of a result."""
        super().hold(blob, node)
        if blob in self.packs:
            self.packs[blob] = tuple(dict.fromkeys((*self.packs[blob], node)))
        for slice_, result in self.results.items():
            if result.blob == blob:
                self.results[slice_] = result.also_on(node)

    def blobs(self) -> dict[BlobHash, tuple[NodeId, ...]]:
        """What must not be lost, and who has it: the files and inputs while the job goes on, and the results."""
        files = {} if self.state in ENDED else {self.bundle: self.holders}
        return files | dict(self.kept())
