"""What a batch inference needs next: pure, from the state and who is there."""

import hashlib
from collections.abc import Collection

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    BatchStart,
    Command,
    Finish,
    LeaseSlices,
    Place,
    Placement,
    Recruit,
    ReopenSlices,
)
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.codec import pack
from dmi_protocol.identity import NodeId, RequestId
from dmi_protocol.kinds.batch.leasing import leases
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.kinds.job import SUCCEEDED
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.placement.holding import COPIES
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import FilesLost, Inferred, ModelLost, Reason


class BatchPlans:
    """See ``Plans``."""

    def place(self, job: BatchJob, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """On any node that there is. What was lost with the last replica is open again first."""
        if reopened := _reopen(job, there):
            return reopened
        generation = job.generation + 1
        placements = _missing(job, nodes, room, generation)
        request = RequestId(
            f"{job.id}/{generation}/place-{'-'.join(placement.node for placement in placements)}{job.attempt}"
        )
        return [Place(request, job.id, generation, placements, BatchStart())] if placements else []

    def finish(self, job: BatchJob, there: list[NodeId]) -> list[Command]:
        """Every slice has a result, somebody who is there has it, and where there are two nodes it is on two."""
        copies = min(COPIES, len(there))
        if job.open_slices() or not all(_is_safe(result.nodes, there, copies) for result in job.results.values()):
            return []
        request = RequestId(f"{job.id}/{job.generation}/finish-{SUCCEEDED}")
        return [Finish(request, job.id, job.generation, SUCCEEDED, Inferred(job.spec.inputs, job.failed()))]

    def hopeless(self, job: BatchJob, state: ClusterState) -> Reason | None:
        """No replica has loaded the model, and no member can give all of it; or nobody has the inputs of a slice."""
        if any(not set(job.packs[pack]) & state.members.keys() for pack in job.packs_of(job.open_slices())):
            return FilesLost()
        model = find(state.models, job.spec.model.id)
        is_there = model is not None and model.is_had(job.spec.model.content.needed, state.members)
        return ModelLost(job.spec.model.id) if not job.endpoints and not is_there else None

    def part(self, job: BatchJob, state: ClusterState) -> list[Command]:
        """Replicas do not talk to each other."""
        return []

    def follow(self, job: BatchJob, state: ClusterState) -> list[Command]:
        """Its inputs and its model are what they were."""
        return []

    def keep_up(self, job: BatchJob, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """Everybody has something to compute, and everybody who can is there to compute it."""
        return [*_reopen(job, there), *_lease(job, nodes), *_recruit(job, nodes, room)]


def _is_safe(holders: Collection[NodeId], there: Collection[NodeId], copies: int) -> bool:
    return len(holders) >= copies and bool(set(holders) & set(there))


def _reopen(job: BatchJob, there: list[NodeId]) -> list[Command]:
    """What cannot be had is computed again, once there is nothing else to compute: who has it may come back meanwhile."""
    if job.open_slices():
        return []
    lost = tuple(s for s, result in sorted(job.results.items()) if not set(result.nodes) & set(there))
    gone = tuple(sorted({node for s in lost for node in job.results[s].nodes}))
    digest = hashlib.sha256(pack((lost, gone))).hexdigest()[:16]
    request = RequestId(f"{job.id}/{job.generation}/reopen-{job.decided}-{digest}")
    return [ReopenSlices(request, job.id, job.generation, lost, gone)] if lost else []


def _lease(job: BatchJob, nodes: list[NodeId]) -> list[Command]:
    wanted, dismissed = leases(job, nodes)
    if not wanted and not dismissed:
        return []
    changed = tuple(sorted(wanted.items()))
    digest = hashlib.sha256(pack((changed, dismissed))).hexdigest()[:16]
    request = RequestId(f"{job.id}/{job.generation}/lease-{job.decided}-{digest}")
    return [LeaseSlices(request, job.id, job.generation, changed, dismissed)]


def _recruit(job: BatchJob, nodes: list[NodeId], room: Room) -> list[Command]:
    placements = _missing(job, nodes, room, job.generation + 1)
    if not placements:
        return []
    who = "-".join(placement.node for placement in placements)
    request = RequestId(f"{job.id}/{job.generation}/recruit-{job.next_index}-{who}{job.attempt}")
    return [Recruit(request, job.id, job.generation, placements)]


def _missing(job: BatchJob, nodes: list[NodeId], room: Room, generation: int) -> tuple[Placement, ...]:
    """The replicas that are wanted beside those that there are: on as many nodes as the job wants, the least loaded first, and
    no more of them than there are slices to compute. Nodes where they were of no use often are left out, and those that have no
    room."""
    placed = [placement.node for placement in job.placements]
    fit = [node for node in nodes if job.misses.get(node, 0) < limits.MISSES] or nodes
    used = set(placed) & set(nodes)
    able = [node for node in fit if node not in used and room.fits(job.spec, node)]
    fresh = sorted(able, key=lambda node: (room.roles.get(node, 0), node))
    more = max(0, (job.spec.replicas or len(nodes)) - len(used))
    slots = [node for node in sorted(used) for _ in range(job.spec.per_node - placed.count(node)) if node in fit]
    slots += [node for _ in range(job.spec.per_node) for node in fresh[:more]]
    lacking = max(0, len(job.open_slices()) - len(placed))
    chosen: list[NodeId] = []
    for node in slots:
        if len(chosen) < lacking and room.fits(job.spec, node):
            chosen.append(node)
            room.take(job.spec, node)
            room.roles[node] = room.roles.get(node, 0) + 1
    first = job.next_index if job.is_placed else 0
    return tuple(
        Placement(RoleKey(job.id, generation, "replica", first + nth), node) for nth, node in enumerate(chosen)
    )
