"""Placements as lists of nodes: the i-th holds the i-th role."""

from collections.abc import Iterable

from dmi_protocol.cluster.command import Place, Placement, TrainingStart
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import JobId, NodeId, PublicKey, RequestId
from dmi_protocol.kinds.job import EndpointRecord
from dmi_protocol.kinds.training.assigning import first_assignment
from dmi_protocol.kinds.training.placing import Chosen
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.roles import Assignment, Endpoint, Replicas, RoleKey


def placing(
    job: JobId,
    generation: int,
    workers: tuple[NodeId, ...],
    servers: tuple[NodeId, ...],
    checkpoint_holders: tuple[NodeId, ...] = (),
    restore: int | None = None,
    backups: int = 1,
    request: str = "",
) -> Place:
    """A start."""
    placements = [Placement(RoleKey(job, generation, "server", i), node) for i, node in enumerate(servers)]
    placements += [Placement(RoleKey(job, generation, "worker", i), node) for i, node in enumerate(workers)]
    assignment = first_assignment(Chosen(workers, servers, len(servers), backups, checkpoint_holders))
    name = RequestId(request or f"{job}/{generation}/place")
    return Place(name, job, generation, tuple(placements), TrainingStart(assignment, checkpoint_holders, restore))


def start_of(place: Place) -> TrainingStart:
    """How a training begins."""
    assert isinstance(place.start, TrainingStart)
    return place.start


def training(state: ClusterState, job: JobId) -> TrainingJob:
    """A job that is one."""
    found = state.jobs[job]
    assert isinstance(found, TrainingJob)
    return found


def put(job: TrainingJob, workers: tuple[NodeId, ...], servers: tuple[NodeId, ...], generation: int = 1) -> None:
    """Make this the placement of ``job``."""
    place = placing(job.id, generation, workers, servers)
    job.generation = job.start_generation = generation
    job.placements, job.assignment = place.placements, start_of(place).assignment
    job.next_index = 1 + max(placement.role.index for placement in place.placements)


def bind_all(job: TrainingJob) -> None:
    """Every process that is wanted is bound."""
    job.endpoints = tuple(
        EndpointRecord(Endpoint(key, node, node[0], "h:2", PublicKey("k" * 40)), 7) for key, node in job.roles()
    )


def filled(assignment: Assignment) -> Assignment:
    """The same, when everybody who was being filled is in sync."""
    shards = tuple(Replicas(r.primary, tuple(sorted((*r.backups, *r.filling)))) for r in assignment.shards)
    return Assignment(assignment.workers, assignment.speeds, assignment.lead, shards)


def workers(placements: Iterable[Placement]) -> tuple[NodeId, ...]:
    """The nodes of the workers, by their indices."""
    return tuple(
        placement.node
        for placement in sorted(placements, key=lambda placement: placement.role)
        if placement.role.role == "worker"
    )


def servers(placements: Iterable[Placement]) -> tuple[NodeId, ...]:
    """The nodes of the servers, by their indices."""
    return tuple(
        placement.node
        for placement in sorted(placements, key=lambda placement: placement.role)
        if placement.role.role == "server"
    )
