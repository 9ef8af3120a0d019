"""Every kind of job, by the class of its state."""

from dmi_protocol.cluster.command import Submit
from dmi_protocol.identity import JobId
from dmi_protocol.kinds.kind import Commands, Plans
from dmi_protocol.kinds.training.commands import TrainingCommands
from dmi_protocol.kinds.training.plans import TrainingPlans
from dmi_protocol.kinds.training.state import TrainingJob

_COMMANDS, _PLANS = TrainingCommands(), TrainingPlans()


def new_job(job: JobId, command: Submit, index: int) -> TrainingJob:
    """The job that the entry at ``index`` submits."""
    return TrainingJob(job, command.spec, command.bundle, command.holders, index)


def commands_of(job: TrainingJob) -> Commands[TrainingJob]:
    """What commands do to a job of this kind."""
    return _COMMANDS


def plans_of(job: TrainingJob) -> Plans[TrainingJob]:
    """What a job of this kind needs next."""
    return _PLANS
