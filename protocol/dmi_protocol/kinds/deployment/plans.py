"""What a deployment needs next: pure, from the state and who is there."""

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command, DeploymentStart, Dismiss, Place, Placement, Recruit, SetVersions
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import NodeId, RequestId
from dmi_protocol.kinds.deployment.placing import missing, parts, replicas_on, surplus
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.model import ModelRef
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import ModelLost, Reason, RoleDied, RoleFailed


class DeploymentPlans:
    """See ``Plans``."""

    def place(self, job: DeploymentJob, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """On any nodes that there are."""
        generation = max(job.generation, job.born) + 1
        placements = _placements(job, nodes, room, generation, first=0)
        if not placements:
            return []
        request = RequestId(
            f"{job.id}/{generation}/place-{'-'.join(placement.node for placement in placements)}{job.attempt}"
        )
        return [Place(request, job.id, generation, placements, DeploymentStart())]

    def finish(self, job: DeploymentJob, there: list[NodeId]) -> list[Command]:
        """It ends when somebody ends it."""
        return []

    def hopeless(self, job: DeploymentJob, state: ClusterState) -> Reason | None:
        """No replica has the model in memory, and no member can give all of it; or it has never served, and was tried on every
        member."""
        current = job.versions.current.id
        model = find(state.models, current)
        content = job.versions.current.content
        lacking = [content.files_of(stage) for stage in range(job.stages) if not job.bound_stage(stage)]
        if not all(model is not None and model.is_had(files, state.members) for files in lacking):
            return ModelLost(current)
        able = [node for node, member in state.members.items() if not member.witness]
        is_tried = bool(able) and all(job.misses.get(node, 0) >= limits.MISSES for node in able)
        return job.trouble if is_tried and not job.has_run and isinstance(job.trouble, RoleFailed | RoleDied) else None

    def part(self, job: DeploymentJob, state: ClusterState) -> list[Command]:
        """A gateway that cannot reach a replica asks another one."""
        return []

    def follow(self, job: DeploymentJob, state: ClusterState) -> list[Command]:
        """The newest version that the training published which it follows, unless it is to stay with what it has."""
        if job.spec.follow is None or job.pinned:
            return []
        published = [v for v in state.models.get(job.spec.name, {}).values() if v.origin == job.spec.follow]
        newest = max((v for v in published if v.id not in job.unusable), key=lambda v: v.number, default=None)
        if job.stages > 1 or newest is None or newest.number <= int(job.versions.current.id.rpartition(":")[2]):
            return []
        versions = replace(job.versions, current=ModelRef(newest.id, newest.content))
        return [SetVersions(RequestId(f"{job.id}/follow-{newest.id}-{job.changes}"), job.id, versions)]

    def keep_up(self, job: DeploymentJob, nodes: list[NodeId], there: list[NodeId], room: Room) -> list[Command]:
        """Whoever is missing is called, and whoever is not needed any more ends."""
        commands: list[Command] = []
        placements = _placements(job, nodes, room, job.generation + 1, first=job.next_index)
        if placements:
            who = "-".join(f"{placement.role.role}@{placement.node}" for placement in placements)
            request = RequestId(f"{job.id}/{job.generation}/recruit-{job.next_index}-{who}{job.attempt}")
            commands.append(Recruit(request, job.id, job.generation, placements))
        gone = tuple(sorted(key for part in parts(job) for key in surplus(job, part, nodes)))
        if gone:
            request = RequestId(f"{job.id}/{job.generation}/dismiss-{'-'.join(key.name for key in gone)}")
            commands.append(Dismiss(request, job.id, job.generation, gone))
        return commands


def _placements(
    job: DeploymentJob, nodes: list[NodeId], room: Room, generation: int, first: int
) -> tuple[Placement, ...]:
    replicas = replicas_on(job)
    chosen = [(part, node) for part in parts(job) for node in missing(job, part, nodes, room, replicas)]
    return tuple(
        Placement(RoleKey(job.id, generation, part.role, first + nth), node, part.stage)
        for nth, (part, node) in enumerate(chosen)
    )
