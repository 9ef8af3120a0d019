"""What is shown of a batch inference."""

from collections.abc import Collection

from dmi_protocol import reasons
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.kinds.kind import Counts
from dmi_protocol.messages.roles import Progressed, RoleKey


class BatchViews:
    """See ``Views``."""

    def counts(self, job: BatchJob, progress: Progressed | None) -> Counts:
        """Inputs: how many have a result, of how many. Who asks twice knows the speed."""
        return Counts(step=job.done(), steps=job.spec.inputs, failed_inputs=job.failed())

    def wanted_nodes(self, job: BatchJob) -> int:
        """One is enough."""
        return 1

    def lacks(self, job: BatchJob) -> int:
        """One, before it is placed."""
        return 0 if job.is_placed else 1

    def running(self, job: BatchJob) -> reasons.Reason:
        """All is well."""
        return reasons.Inferring(_nodes(job), job.done(), job.spec.inputs, job.failed())

    def weakened(self, job: BatchJob, loss: reasons.Loss) -> reasons.Reason:
        """It runs, and somebody is missing."""
        return reasons.InferringWithout(loss, _nodes(job), len(job.placements) - len(job.endpoints))

    def away(self, job: BatchJob, alive: Collection[NodeId]) -> tuple[NodeId, ...]:
        """What cannot be had is computed again: nobody must come back."""
        return ()

    def recovering(self, job: BatchJob, loss: reasons.Loss, away: tuple[str, ...]) -> reasons.Reason:
        """It goes on with what has no result."""
        return reasons.Resuming(loss, job.done(), job.spec.inputs, len(job.endpoints), len(job.placements))

    def shards(self, job: BatchJob, role: RoleKey) -> tuple[tuple[int, bool], ...]:
        """A replica holds none."""
        return ()


def _nodes(job: BatchJob) -> tuple[str, ...]:
    return tuple(dict.fromkeys(record.endpoint.node_name for record in job.endpoints))
