"""What is shown of a training."""

from collections.abc import Collection

from dmi_protocol import reasons
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.job import ENDED, RUNNING, SUCCEEDED
from dmi_protocol.kinds.kind import Counts
from dmi_protocol.kinds.training.placing import wanted_nodes
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.roles import Progressed, RoleKey


class TrainingViews:
    """See ``Views``."""

    def counts(self, job: TrainingJob, progress: Progressed | None) -> Counts:
        """``progress`` counts while it runs; afterwards the state has the last step and loss."""
        goes_on = job.state not in ENDED
        told = progress if goes_on else None
        steps = progress.steps if progress is not None else None
        return Counts(
            step=told.step if told is not None else job.step,
            steps=job.step if job.state == SUCCEEDED else steps,
            samples_per_second=progress.samples_per_second if progress is not None and job.state == RUNNING else None,
            loss=told.loss if told is not None else job.loss,
        )

    def wanted_nodes(self, job: TrainingJob) -> int:
        """How many must be alive before it can start."""
        return wanted_nodes(job.spec)

    def lacks(self, job: TrainingJob) -> int:
        """All of them, before it is placed; a job that has run makes do with fewer."""
        return 0 if job.is_placed else 1 if job.has_run else wanted_nodes(job.spec)

    def running(self, job: TrainingJob) -> reasons.Reason:
        """All is well."""
        workers, servers = (
            tuple(r.endpoint.node_name for r in job.endpoints if r.endpoint.key.role == role)
            for role in ("worker", "server")
        )
        nodes = {record.endpoint.key: record.endpoint.node_name for record in job.endpoints}
        busy = tuple((role.name, nodes[role]) for role in job.busy if role in nodes)
        return reasons.Running(workers, servers, busy)

    def weakened(self, job: TrainingJob, loss: reasons.Loss) -> reasons.Reason:
        """It runs, and something is missing."""
        assert job.assignment is not None
        able = [w for w, speed in zip(job.assignment.workers, job.assignment.speeds, strict=True) if speed]
        endpoints = [record.endpoint for record in job.endpoints]
        workers = tuple(s.node_name for s in endpoints if s.key.role == "worker" and s.key.index in able)
        coming = len(job.placements) - len(endpoints) + len(job.assignment.workers) - len(able)
        return reasons.Weakened(loss, workers, sum(not shard.backups for shard in job.assignment.shards), coming)

    def away(self, job: TrainingJob, alive: Collection[NodeId]) -> tuple[NodeId, ...]:
        """Who alone has parts of the checkpoint, and is not alive."""
        return job.parts_away(alive)

    def recovering(self, job: TrainingJob, loss: reasons.Loss, away: tuple[str, ...]) -> reasons.Reason:
        """It goes on after ``loss``, or waits for those who are ``away``."""
        if job.runs:
            return reasons.TakingOver(loss)
        step = None if job.checkpoint is None else job.checkpoint.step
        if step is not None and away:
            return reasons.PartsAway(loss, step, away)
        return reasons.Recovering(loss, step, len(job.endpoints), len(job.roles()))

    def shards(self, job: TrainingJob, role: RoleKey) -> tuple[tuple[int, bool], ...]:
        """Each shard that a server has a copy of, and whether it is the primary."""
        if role.role != "server" or job.assignment is None:
            return ()
        copies = enumerate(job.assignment.shards)
        return tuple((shard, role.index == copy.primary) for shard, copy in copies if role.index in copy.in_sync)
