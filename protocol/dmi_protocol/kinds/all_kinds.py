"""Every kind of job: the one list of rooms."""

from typing import Any

from dmi_protocol.cluster.command import BatchSpec, Submit
from dmi_protocol.identity import JobId
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.batch.commands import BatchCommands
from dmi_protocol.kinds.batch.plans import BatchPlans
from dmi_protocol.kinds.batch.processes import BatchProcesses
from dmi_protocol.kinds.batch.state import BatchJob, is_fit
from dmi_protocol.kinds.batch.views import BatchViews
from dmi_protocol.kinds.kind import Kind
from dmi_protocol.kinds.training.commands import TrainingCommands
from dmi_protocol.kinds.training.plans import TrainingPlans
from dmi_protocol.kinds.training.processes import TrainingProcesses
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.kinds.training.views import TrainingViews

_TRAINING = Kind("training", TrainingCommands(), TrainingPlans(), TrainingProcesses(), TrainingViews())
_BATCH = Kind("batch", BatchCommands(), BatchPlans(), BatchProcesses(), BatchViews())


def new_job(job: JobId, command: Submit, index: int) -> AnyJob | None:
    """The job that the entry at ``index`` submits; None where the numbers of its spec can be those of no job."""
    if isinstance(command.spec, BatchSpec):
        if not is_fit(command.spec):
            return None
        return BatchJob(job, command.spec, command.bundle, command.holders, index)
    return TrainingJob(job, command.spec, command.bundle, command.holders, index)


def kind_of(job: AnyJob) -> Kind[Any]:
    """The room that this job belongs to."""
    return _BATCH if isinstance(job, BatchJob) else _TRAINING
