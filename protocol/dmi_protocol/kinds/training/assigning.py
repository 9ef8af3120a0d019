"""Who does what in the next generation of a job whose processes go on, and whom it still lacks: pure, from the state."""

from collections.abc import Collection, Mapping, Sequence

from dmi_protocol import limits
from dmi_protocol.cluster.command import Placement
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.training.placing import Chosen, wanted_backups
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.roles import Assignment, Replicas, RoleKey


def first_assignment(chosen: Chosen) -> Assignment:
    """Of processes that are started together: the backups are filled once there is something to fill them with."""
    servers, backups = len(chosen.servers), chosen.backups
    shards = tuple(
        Replicas(shard, (), tuple(sorted((shard + 1 + nth) % servers for nth in range(min(backups, servers - 1)))))
        for shard in range(chosen.shards)
    )
    workers = tuple(range(len(chosen.workers)))
    return Assignment(workers, (1.0,) * len(workers), 0, shards)


def reassign(job: TrainingJob, leaving: Collection[NodeId] = ()) -> Assignment:
    """What the processes of ``job`` that are there should do. Every shard has a copy in sync among them.

    A lost primary's first backup takes its place; all other copies are then filled anew. Shards that lack backups get
    them on the servers that have the fewest copies, each on another node than the other copies. What is on nodes that are
    ``leaving`` moves to the others: workers get no more leaves, copies are made elsewhere before they are given up.
    """
    assert job.assignment is not None
    bound = {record.endpoint.key for record in job.endpoints}
    node_of = {p.role.index: p.node for p in job.placements if p.role.role == "server" and p.role in bound}
    stay = {server: node for server, node in node_of.items() if node not in leaving}
    shards = [_survive(job, shard, replicas, node_of, stay) for shard, replicas in enumerate(job.assignment.shards)]
    copies = dict.fromkeys(sorted(stay), 0)
    for server in (
        server for replicas in shards for server in (*replicas.in_sync, *replicas.filling) if server in stay
    ):
        copies[server] += 1
    full = tuple(_fill(replicas, wanted_backups(job.spec), stay, copies) for replicas in shards)
    there = [p for p in job.placements if p.role.role == "worker" and p.role in bound]
    placements = sorted(
        (p for p in there if not _is_dismissed(p, job, leaving)), key=lambda placement: placement.role.index
    )
    fit = [p.role for p in placements if p.role.generation == job.start_generation or p.role in job.ready]
    able = [p.role for p in placements if p.role in fit and p.node not in leaving] or fit
    indices = [role.index for role in able]
    lead = job.assignment.lead if job.assignment.lead in indices else min(indices)
    return Assignment(
        tuple(p.role.index for p in placements), tuple(float(p.role in able) for p in placements), lead, full
    )


def dismissed(job: TrainingJob, assignment: Assignment, leaving: Collection[NodeId]) -> tuple[RoleKey, ...]:
    """The processes on nodes that are ``leaving`` that have nothing to do any more, in ``assignment`` or before it."""
    assert job.assignment is not None
    needed = {server for c in (job.assignment, assignment) for r in c.shards for server in (*r.in_sync, *r.filling)}
    servers = [
        p for p in job.placements if p.role.role == "server" and p.node in leaving and p.role.index not in needed
    ]
    workers = [p for p in job.placements if _is_dismissed(p, job, leaving) and p.role.index not in assignment.workers]
    return tuple(placement.role for placement in (*servers, *workers))


def _is_dismissed(placement: Placement, job: TrainingJob, leaving: Collection[NodeId]) -> bool:
    """A worker that has no leaves any more, on a node that is leaving."""
    assert job.assignment is not None
    shares = dict(zip(job.assignment.workers, job.assignment.speeds, strict=True))
    return placement.role.role == "worker" and placement.node in leaving and not shares.get(placement.role.index, 0.0)


def _survive(
    job: TrainingJob, shard: int, replicas: Replicas, node_of: Mapping[int, NodeId], stay: Collection[int]
) -> Replicas:
    """The copies of one shard that are still there, and who leads them: somebody who stays, if one is in sync."""
    backups = [server for server in replicas.backups if server in node_of]
    filling = [server for server in replicas.filling if server in node_of]
    caught_up = [server for server in filling if (shard, server) in job.synced]
    if replicas.primary not in node_of or (replicas.primary not in stay and set(backups) & set(stay)):
        heir = next((server for server in backups if server in stay), (backups or [replicas.primary])[0])
        rest = {*backups, *filling} - {heir}
        return Replicas(heir, (), tuple(sorted(rest & set(stay))))
    still = tuple(server for server in filling if server not in caught_up)
    return Replicas(replicas.primary, tuple(sorted({*backups, *caught_up})), still)


def _fill(replicas: Replicas, wanted: int, stay: Mapping[int, NodeId], copies: dict[int, int]) -> Replicas:
    """Enough copies on those who ``stay``; then the others' are given up."""
    filling = list(replicas.filling)
    need = wanted if replicas.primary in stay else max(wanted, 1)
    while sum(server in stay for server in (*replicas.backups, *filling)) < need:
        used = {stay[server] for server in (*replicas.in_sync, *filling) if server in stay}
        able = [server for server in copies if stay[server] not in used]
        if not able:
            break
        chosen = min(able, key=lambda server: (copies[server], server))
        copies[chosen] += 1
        filling.append(chosen)
    kept = tuple(server for server in replicas.backups if server in stay)
    backups = kept if len(kept) >= wanted and replicas.primary in stay else replicas.backups
    return Replicas(replicas.primary, backups, tuple(sorted(filling)))


def is_full(job: TrainingJob, assignment: Assignment, nodes: Sequence[NodeId]) -> bool:
    """Is nothing amiss with ``assignment``: every process that there could be is there, and does its part?"""
    backups = min(wanted_backups(job.spec), len(nodes) - 1)
    copied = all(len(replicas.backups) >= backups for replicas in assignment.shards)
    bound = {record.endpoint.key for record in job.endpoints}
    are_here = all(placement.role in bound for placement in job.placements)
    return copied and are_here and all(assignment.speeds) and not recruits(job, nodes, {})


def recruits(job: TrainingJob, nodes: Sequence[NodeId], load: Mapping[NodeId, int]) -> tuple[Placement, ...]:
    """The processes that a job lacks and that ``nodes`` could run: workers up to what was asked for, servers while a shard
    has fewer copies than it should. They are born for a later generation than those that were started first."""
    nodes = [node for node in nodes if job.misses.get(node, 0) < limits.MISSES]
    placements = [placement for placement in job.placements if placement.node in nodes]
    ordered = sorted(nodes, key=lambda node: (load.get(node, 0), node))
    workers = _free("worker", placements, ordered)[
        : max(0, (job.spec.workers or len(nodes)) - _count("worker", placements))
    ]
    copies = 1 + wanted_backups(job.spec)
    servers = _free("server", placements, ordered)[: max(0, copies - _count("server", placements))]
    wanted = [("server", node) for node in servers] + [("worker", node) for node in workers]
    return tuple(
        Placement(
            RoleKey(job.id, job.generation + 1, "server" if role == "server" else "worker", job.next_index + nth), node
        )
        for nth, (role, node) in enumerate(wanted)
    )


def _count(role: str, placements: Collection[Placement]) -> int:
    return len({placement.node for placement in placements if placement.role.role == role})


def _free(role: str, placements: Collection[Placement], nodes: Sequence[NodeId]) -> list[NodeId]:
    """The nodes that have no such process."""
    taken = {placement.node for placement in placements if placement.role.role == role}
    return [node for node in nodes if node not in taken]
