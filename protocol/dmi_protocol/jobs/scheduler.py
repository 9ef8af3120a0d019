"""What the coordinator should propose next for the jobs: pure, from the state and who is alive.

Each proposal has a request id that is a function of what it decides, so proposing it twice does it once.
"""

from collections.abc import Set
from itertools import islice

from dmi_protocol import limits
from dmi_protocol.blame import PLANNING, SetAside, at
from dmi_protocol.cluster.command import Command, Finish, LoseRole, Recopy
from dmi_protocol.cluster.holding import Holding
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash, NodeId, RequestId
from dmi_protocol.instant import Instant, after
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.job import ENDED, FAILED
from dmi_protocol.placement.holding import recopies
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import FilesLost, GivenUp, NodeLost, Reason


class Scheduler:
    """Remembers only since when members are dead. Jobs that are ``set_aside`` are given up in the name of ``node``."""

    def __init__(self, node: str = "", set_aside: SetAside | None = None) -> None:
        self._node = node
        self._set_aside = set_aside or SetAside()
        self._dead: dict[NodeId, Instant] = {}
        self._seen = Instant(0)
        """When they were looked at last."""

    def deadline(self) -> Instant | None:
        """When a dead member is not counted on any more."""
        due = [at for since in self._dead.values() if (at := after(since, limits.RECOPY_MS)) > self._seen]
        return min(due, default=None)

    def propose(self, now: Instant, state: ClusterState, alive: Set[NodeId]) -> list[Command]:
        """All that is due now."""
        there = sorted(n for n, member in state.members.items() if n in alive and not member.witness)
        nodes = [node for node in there if not state.members[node].draining]
        room = Room(state)
        commands: list[Command] = []
        going_on = [job for job in state.jobs.values() if job.state not in ENDED]
        for job in sorted(going_on, key=lambda job: job.submitted_at):
            with at(PLANNING, job.id):
                commands += self._plan(job, state, nodes, there, room)
        return [*commands, *self._recopy(now, state, nodes, alive, room.roles)]

    def _plan(
        self, job: AnyJob, state: ClusterState, nodes: list[NodeId], there: list[NodeId], room: Room
    ) -> list[Command]:
        plans = kind_of(job).plans
        why_not = self._why_not(job, state)
        if why_not is not None:
            request = RequestId(f"{job.id}/{job.generation}/finish-{FAILED}")
            return [Finish(request, job.id, job.generation, FAILED, why_not)]
        if followed := plans.follow(job, state):
            return followed
        if not job.is_placed:
            return plans.finish(job, there) or plans.place(job, nodes, there, room)
        return plans.finish(job, there) or _watch(job, there, state) or plans.keep_up(job, nodes, there, room)

    def _why_not(self, job: AnyJob, state: ClusterState) -> Reason | None:
        """Why it is given up."""
        if (why := self._set_aside.of(PLANNING, job.id)) is not None:
            return GivenUp(self._node, why)
        is_lost = bool(job.files()) and not set(job.holders) & state.members.keys()
        return FilesLost() if is_lost else kind_of(job).plans.hopeless(job, state)

    def _recopy(
        self, now: Instant, state: ClusterState, nodes: list[NodeId], alive: Set[NodeId], load: dict[NodeId, int]
    ) -> list[Command]:
        """Whatever has too few copies gets another one, while somebody has it."""
        self._dead = {node: self._dead.get(node, now) for node in state.members if node not in alive}
        self._seen = now
        gone = {node for node, since in self._dead.items() if now >= after(since, limits.RECOPY_MS)}
        most = limits.RECOPIES - sum(len(owner.copies) for owner in state.holdings())
        due = islice(recopies(state, nodes, alive, gone, load), max(0, most))
        return [_further_copy(owner, blob, node) for owner, blob, node in due]


def _further_copy(owner: Holding, blob: BlobHash, node: NodeId) -> Recopy:
    nth = owner.asked.get(blob, 0)
    return Recopy(RequestId(f"{owner.id}/recopy-{blob}-{nth}-{node}"), owner.id, blob, node, nth)


def _watch(job: AnyJob, nodes: list[NodeId], state: ClusterState) -> list[Command]:
    """A role is lost with its node, unless its work is done and safe."""
    lost = kind_of(job).plans.part(job, state)
    for role, node in job.roles():
        is_safe = kind_of(job).commands.is_safe_without(job, role)
        if node not in nodes and not is_safe:
            bound = next((r.endpoint.node_name for r in job.endpoints if r.endpoint.key == role), node)
            name = state.members[node].name if node in state.members else bound
            request = RequestId(f"{job.id}/{role.generation}/lost-{role.name}")
            lost.append(LoseRole(request, role, NodeLost(role.name, name)))
    return lost
