"""What the coordinator should propose next for the jobs: pure, from the state and who is alive.

Each proposal has a request id that is a function of what it decides, so proposing it twice does it once.
"""

from collections.abc import Set

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command, Finish, LoseRole, Place, Rekeep
from dmi_protocol.cluster.state import ENDED, FAILED, RUNNING, SUCCEEDED, ClusterState, Job
from dmi_protocol.identity import JobId, NodeId, RequestId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.jobs.hosting import role_name
from dmi_protocol.placement.roles import choose, keepers_of
from dmi_protocol.reasons import NodeLost, Reason, RoleUnready, Succeeded


class Scheduler:
    """Remembers only since when the roles of a placement are awaited."""

    def __init__(self) -> None:
        self._since: dict[tuple[JobId, int], Instant] = {}

    def deadline(self, state: ClusterState) -> Instant | None:
        """When a role that has not got ready is given up."""
        waited = {(job.id, job.generation) for job in state.jobs.values() if job.goes_on and job.state != RUNNING}
        self._since = {key: since for key, since in self._since.items() if key in waited}
        return earliest(*(after(since, limits.ROLE_START_MS) for since in self._since.values()))

    def propose(self, now: Instant, state: ClusterState, alive: Set[NodeId]) -> list[Command]:
        """All that is due now."""
        nodes = sorted(n for n, member in state.members.items() if n in alive and not member.witness)
        load = _load(state)
        commands: list[Command] = []
        going_on = [job for job in state.jobs.values() if job.state not in ENDED]
        for job in sorted(going_on, key=lambda job: job.submitted_at):
            if not job.is_placed:
                commands += _place(job, nodes, load)
            elif _is_done(job):
                assert job.checkpoint is not None
                commands += [_finish(job, SUCCEEDED, Succeeded(job.checkpoint.step), job.checkpoint.step)]
            else:
                commands += _watch(job, nodes, state) or _rekeep(job, nodes) or self._unready(now, job, state)
        return commands

    def _unready(self, now: Instant, job: Job, state: ClusterState) -> list[Command]:
        """A role that does not get ready is not waited for without end."""
        if job.state == RUNNING:
            return []
        since = self._since.setdefault((job.id, job.generation), now)
        if now < after(since, limits.ROLE_START_MS):
            return []
        seated = {record.seat.key for record in job.seats}
        role, node = next((role, node) for role, node in job.roles() if role not in seated)
        name = state.members[node].name
        return [_finish(job, FAILED, RoleUnready(role_name(role), name, limits.ROLE_START_MS))]


def _load(state: ClusterState) -> dict[NodeId, int]:
    load: dict[NodeId, int] = {}
    for job in state.jobs.values():
        if job.goes_on:
            for _, node in job.roles():
                load[node] = load.get(node, 0) + 1
    return load


def _place(job: Job, nodes: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
    """A job that has run makes do with fewer nodes; but somebody must have each part of its checkpoint."""
    chosen = choose(job.spec, nodes, load, fewer=job.has_run)
    if chosen is None or job.parts_away(nodes):
        return []
    for node in chosen.workers:
        load[node] = load.get(node, 0) + 1
    generation, restore = job.generation + 1, None if job.checkpoint is None else job.checkpoint.step
    request = RequestId(f"{job.id}/{generation}/place-{restore}")
    return [Place(request, job.id, generation, chosen.workers, chosen.servers, chosen.keepers, restore)]


def _is_done(job: Job) -> bool:
    return job.state == RUNNING and len(job.completed) == len(job.roles()) and job.final


def _watch(job: Job, nodes: list[NodeId], state: ClusterState) -> list[Command]:
    """A role is lost with its node, unless its work is done and safe."""
    for role, node in job.roles():
        is_safe = job.final and job.is_done(role)
        if node not in nodes and not is_safe:
            seated = next((r.seat.node_name for r in job.seats if r.seat.key == role), node)
            name = state.members[node].name if node in state.members else seated
            request = RequestId(f"{job.id}/{job.generation}/lost-{role_name(role)}")
            return [LoseRole(request, role, NodeLost(role_name(role), name))]
    return []


def _rekeep(job: Job, nodes: list[NodeId]) -> list[Command]:
    """A keeper that is away is replaced, so that checkpoints go on being whole."""
    keepers = keepers_of(job.servers, nodes)
    if keepers and set(job.keepers) and set(job.keepers) <= set(nodes):
        return []
    if keepers == job.keepers:
        return []
    request = RequestId(f"{job.id}/{job.generation}/keep-{job.rekept}-{'-'.join(keepers)}")
    return [Rekeep(request, job.id, job.generation, keepers)]


def _finish(job: Job, state: str, reason: Reason, step: int | None = None) -> Finish:
    return Finish(RequestId(f"{job.id}/{job.generation}/finish-{state}"), job.id, job.generation, state, reason, step)
