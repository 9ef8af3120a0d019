"""What is shown of a deployment."""

from collections.abc import Collection

from dmi_protocol import reasons
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.kind import Counts
from dmi_protocol.messages.roles import Progressed, RoleKey


class DeploymentViews:
    """See ``Views``."""

    def counts(self, job: DeploymentJob, progress: Progressed | None) -> Counts:
        """It has no steps: see ``view.DeploymentView``."""
        return Counts()

    def wanted_nodes(self, job: DeploymentJob) -> int:
        """One is enough."""
        return 1

    def lacks(self, job: DeploymentJob) -> int:
        """One, while there is a stage of which it has no replica."""
        return int(not job.is_asleep and not all(job.placed("replica", stage) for stage in range(job.stages)))

    def running(self, job: DeploymentJob) -> reasons.Reason:
        """All is well."""
        if job.is_asleep:
            return reasons.Asleep(job.versions.current.id, _nodes(job, "gateway"))
        wanted = (job.spec.replicas or job.scale) * job.stages if job.spec.share else 0
        lacking = max(0, wanted - len(job.placed("replica")))
        return reasons.Serving(job.versions.current.id, _nodes(job, "replica"), _nodes(job, "gateway"), lacking)

    def weakened(self, job: DeploymentJob, loss: reasons.Loss) -> reasons.Reason:
        """It serves, and somebody is missing."""
        coming = len(job.placements) - len(job.endpoints)
        return reasons.ServingWithout(loss, _nodes(job, "replica"), _nodes(job, "gateway"), coming)

    def away(self, job: DeploymentJob, alive: Collection[NodeId]) -> tuple[NodeId, ...]:
        """Anybody may serve: nobody must come back."""
        return ()

    def recovering(self, job: DeploymentJob, loss: reasons.Loss, away: tuple[str, ...]) -> reasons.Reason:
        """Requests wait, or there is nobody to take them in."""
        return reasons.NotServing(loss, len(job.endpoints), len(job.placements))

    def shards(self, job: DeploymentJob, role: RoleKey) -> tuple[tuple[int, bool], ...]:
        """A replica holds the whole model, or a stage of it, which nobody leads."""
        return ((job.stage(role), True),) if role.role == "replica" and job.stages > 1 else ()


def _nodes(job: DeploymentJob, role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(e.endpoint.node_name for e in job.endpoints if e.endpoint.key.role == role))
