"""Every kind of job, by the class of its state."""

from dmi_protocol.cluster.command import Submit
from dmi_protocol.identity import JobId
from dmi_protocol.kinds.kind import Kind
from dmi_protocol.kinds.training.commands import TrainingCommands
from dmi_protocol.kinds.training.plans import TrainingPlans
from dmi_protocol.kinds.training.processes import TrainingProcesses
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.kinds.training.views import TrainingViews

_TRAINING = Kind("training", TrainingCommands(), TrainingPlans(), TrainingProcesses(), TrainingViews())


def new_job(job: JobId, command: Submit, index: int) -> TrainingJob:
    """The job that the entry at ``index`` submits."""
    return TrainingJob(job, command.spec, command.bundle, command.holders, index)


def kind_of(job: TrainingJob) -> Kind[TrainingJob]:
    """The room that this job belongs to."""
    return _TRAINING
