"""What the coordinator should propose next for the jobs: pure, from the state and who is alive.

Each proposal has a request id that is a function of what it decides, so proposing it twice does it once.
"""

from collections.abc import Set

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command, Finish, Place
from dmi_protocol.cluster.state import ENDED, FAILED, RUNNING, STARTING, SUCCEEDED, ClusterState, Job
from dmi_protocol.identity import JobId, NodeId, RequestId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.jobs.hosting import role_name
from dmi_protocol.placement.roles import choose
from dmi_protocol.reasons import NodeLost, Reason, RoleUnready, Succeeded


class Scheduler:
    """Remembers only since when the roles of a placement are awaited."""

    def __init__(self) -> None:
        self._since: dict[tuple[JobId, int], Instant] = {}

    def deadline(self, state: ClusterState) -> Instant | None:
        """When a role that has not got ready is given up."""
        waited = {(job.id, job.generation) for job in state.jobs.values() if job.state == STARTING}
        self._since = {key: since for key, since in self._since.items() if key in waited}
        return earliest(*(after(since, limits.ROLE_START_MS) for since in self._since.values()))

    def propose(self, now: Instant, state: ClusterState, alive: Set[NodeId]) -> list[Command]:
        """All that is due now."""
        nodes = sorted(n for n, member in state.members.items() if n in alive and not member.witness)
        load = _load(state)
        commands: list[Command] = []
        going_on = [job for job in state.jobs.values() if job.state not in ENDED]
        for job in sorted(going_on, key=lambda job: job.submitted_at):
            match job.state:
                case "queued":
                    commands += self._place(job, nodes, load)
                case "starting":
                    commands += self._start(now, job, nodes, alive, load, state)
                case "running":
                    commands += _watch(job, alive, state)
        return commands

    def _place(self, job: Job, nodes: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
        chosen = choose(job.spec, nodes, load)
        if chosen is None:
            return []
        for node in chosen.workers:
            load[node] = load.get(node, 0) + 1
        generation = job.generation + 1
        request = RequestId(f"{job.id}/{generation}/place")
        return [Place(request, job.id, generation, chosen.workers, chosen.servers)]

    def _start(
        self,
        now: Instant,
        job: Job,
        nodes: list[NodeId],
        alive: Set[NodeId],
        load: dict[NodeId, int],
        state: ClusterState,
    ) -> list[Command]:
        """A node that is lost before all was ready costs nothing but a new placement."""
        if any(node not in alive or node not in state.members for _, node in job.roles()):
            return self._place(job, nodes, load)
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
        if job.state in {STARTING, RUNNING}:
            for _, node in job.roles():
                load[node] = load.get(node, 0) + 1
    return load


def _watch(job: Job, alive: Set[NodeId], state: ClusterState) -> list[Command]:
    """A running job ends when all its roles are done and its final state is durable, or when a role's node is lost."""
    if len(job.completed) == len(job.roles()) and job.final and job.checkpoint is not None:
        return [_finish(job, SUCCEEDED, Succeeded(job.checkpoint.step), job.checkpoint.step)]
    for role, node in job.roles():
        if role not in job.completed and (node not in alive or node not in state.members):
            name = next((r.seat.node_name for r in job.seats if r.seat.key == role), node)
            return [_finish(job, FAILED, NodeLost(role_name(role), name))]
    return []


def _finish(job: Job, state: str, reason: Reason, step: int | None = None) -> Finish:
    return Finish(RequestId(f"{job.id}/{job.generation}/finish-{state}"), job.id, job.generation, state, reason, step)
