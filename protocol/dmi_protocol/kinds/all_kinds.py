"""Every kind of job: the one list of rooms."""

from typing import Any

from dmi_protocol.cluster.command import BatchSpec, Submit
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState
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
from dmi_protocol.reasons import Malformed, Reason, UnknownModel

_TRAINING = Kind("training", TrainingCommands(), TrainingPlans(), TrainingProcesses(), TrainingViews())
_BATCH = Kind("batch", BatchCommands(), BatchPlans(), BatchProcesses(), BatchViews())


def new_job(job: JobId, command: Submit, index: int, state: ClusterState) -> AnyJob | Reason:
    """The job that the entry at ``index`` submits, or why it can be none."""
    if isinstance(command.spec, BatchSpec):
        if not is_fit(command.spec):
            return Malformed("job", command.spec.name)
        model = find(state.models, command.spec.model.id)
        if model is None or model.content != command.spec.model.content:
            return UnknownModel(command.spec.model.id)
        packs = dict.fromkeys(command.spec.packs, command.holders)
        return BatchJob(job, command.spec, command.bundle, command.holders, index, packs=packs)
    return TrainingJob(job, command.spec, command.bundle, command.holders, index)


def kind_of(job: AnyJob) -> Kind[Any]:
    """The room that this job belongs to."""
    return _BATCH if isinstance(job, BatchJob) else _TRAINING
