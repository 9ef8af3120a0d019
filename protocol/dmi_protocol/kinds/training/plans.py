"""What a training needs next: pure, from the state and who is there."""

import hashlib
from collections.abc import Set

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    Command,
    Finish,
    LoseRole,
    Place,
    Placement,
    Reassign,
    Recruit,
    SetCheckpointHolders,
    TrainingStart,
)
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.codec import pack
from dmi_protocol.identity import NodeId, RequestId
from dmi_protocol.kinds.job import RUNNING, SUCCEEDED
from dmi_protocol.kinds.training.assigning import dismissed, first_assignment, is_full, reassign, recruits
from dmi_protocol.kinds.training.placing import checkpoint_holders_of, choose
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import PairSilent, Reason, Succeeded


class TrainingPlans:
    """See ``Plans``."""

    def place(self, job: TrainingJob, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """A job that has run makes do with fewer nodes; but somebody must have each part of its checkpoint: those who are
        leaving have it still."""
        roomy = [node for node in nodes if room.fits(job.spec, node)]
        fit = [node for node in roomy if job.misses.get(node, 0) < limits.MISSES]
        chosen = choose(job.spec, fit, room.roles, fewer=job.has_run)
        chosen = chosen or choose(job.spec, roomy, room.roles, fewer=job.has_run)
        if chosen is None or job.parts_away(there):
            return []
        for node in {*chosen.workers, *chosen.servers}:
            room.take(job.spec, node)
        for node in chosen.workers:
            room.roles[node] = room.roles.get(node, 0) + 1
        generation, restore = job.generation + 1, None if job.checkpoint is None else job.checkpoint.step
        request = RequestId(f"{job.id}/{generation}/place-{restore}{job.attempt}")
        servers = [
            Placement(RoleKey(job.id, generation, "server", nth), node) for nth, node in enumerate(chosen.servers)
        ]
        workers = [
            Placement(RoleKey(job.id, generation, "worker", nth), node) for nth, node in enumerate(chosen.workers)
        ]
        start = TrainingStart(first_assignment(chosen), chosen.checkpoint_holders, restore)
        return [Place(request, job.id, generation, (*servers, *workers), start)]

    def finish(self, job: TrainingJob, there: list[NodeId]) -> list[Command]:
        """The scripts have ended, and the last version is kept."""
        if not (job.runs and job.all_completed and job.final):
            return []
        assert job.checkpoint is not None
        step = job.checkpoint.step
        request = RequestId(f"{job.id}/{job.generation}/finish-{SUCCEEDED}")
        return [Finish(request, job.id, job.generation, SUCCEEDED, Succeeded(step), step)]

    def hopeless(self, job: TrainingJob, state: ClusterState) -> Reason | None:
        """It needs nothing else."""
        return None

    def part(self, job: TrainingJob, state: ClusterState) -> list[Command]:
        """Of two that cannot talk one is replaced: whoever has not been of use yet, or else the one on the later node, so that
        all pairs between two nodes end alike. One that is busy will talk again."""
        nodes = dict(job.roles())
        lost: dict[RoleKey, Command] = {}
        for pair in job.pairs:
            two = (pair.role, pair.peer)
            if set(two) & set(job.busy):
                continue
            victim = max(two, key=lambda role: (_is_new(role, job), nodes[role], role))
            other = next(role for role in two if role != victim)
            names = [state.members[nodes[r]].name if nodes[r] in state.members else nodes[r] for r in (victim, other)]
            reason = PairSilent(victim.name, names[0], other.name, names[1], pair.silent_ms)
            request = RequestId(f"{job.id}/{victim.generation}/lost-{victim.name}")
            lost.setdefault(victim, LoseRole(request, victim, reason))
        return list(lost.values())

    def follow(self, job: TrainingJob, state: ClusterState) -> list[Command]:
        """It depends on nothing else."""
        return []

    def keep_up(self, job: TrainingJob, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """Survivors go on in a new generation; then whoever is missing is called. Nodes that are ``there`` and not among
        ``nodes`` are leaving. Only who has room for the job can be called."""
        leaving, mine = set(there) - set(nodes), {placement.node for placement in job.placements}
        able = [node for node in nodes if node in mine or room.fits(job.spec, node)]
        return (
            _reassign(job, able, leaving) or _recruit(job, able, room) or _set_checkpoint_holders(job, nodes or there)
        )


def _is_new(role: RoleKey, job: TrainingJob) -> bool:
    return role.role == "worker" and role.generation != job.start_generation and role not in job.ready


def _reassign(job: TrainingJob, nodes: list[NodeId], leaving: Set[NodeId]) -> list[Command]:
    if not job.runs or (job.completed and job.state == RUNNING):
        return []
    assignment = reassign(job, leaving)
    gone = dismissed(job, assignment, leaving)
    full = is_full(job, assignment, nodes)
    if assignment == job.assignment and not gone and job.state == RUNNING and (job.reason is None or not full):
        return []
    generation = job.generation + 1
    digest = hashlib.sha256(pack((assignment, gone))).hexdigest()[:16]
    return [
        Reassign(
            RequestId(f"{job.id}/{generation}/reassign-{digest}-{full}"), job.id, generation, assignment, full, gone
        )
    ]


def _recruit(job: TrainingJob, nodes: list[NodeId], room: Room) -> list[Command]:
    """While nobody is done yet: whoever comes at the end has nothing to do."""
    if not job.runs or job.completed or job.state != RUNNING:
        return []
    placements = recruits(job, nodes, room.roles)
    if not placements:
        return []
    for node in {placement.node for placement in placements} - {placement.node for placement in job.placements}:
        room.take(job.spec, node)
    who = "-".join(placement.node for placement in placements)
    return [
        Recruit(
            RequestId(f"{job.id}/{job.generation}/recruit-{job.next_index}-{who}{job.attempt}"),
            job.id,
            job.generation,
            placements,
        )
    ]


def _set_checkpoint_holders(job: TrainingJob, nodes: list[NodeId]) -> list[Command]:
    """A checkpoint holder that is away is replaced, so that checkpoints go on being whole."""
    primaries = job.primaries()
    checkpoint_holders = checkpoint_holders_of(primaries, nodes)
    are_apart = all(holder != primary for holder, primary in zip(job.checkpoint_holders, primaries, strict=False))
    if checkpoint_holders and job.checkpoint_holders and set(job.checkpoint_holders) <= set(nodes) and are_apart:
        return []
    if checkpoint_holders == job.checkpoint_holders:
        return []
    request = RequestId(f"{job.id}/{job.generation}/holders-{job.holder_changes}-{'-'.join(checkpoint_holders)}")
    return [SetCheckpointHolders(request, job.id, job.generation, checkpoint_holders)]
