"""Every kind of job: the one list of rooms."""

from typing import Any

from dmi_protocol.cluster.command import BatchSpec, DeploymentSpec, Submit
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import JobId
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.batch.commands import BatchCommands
from dmi_protocol.kinds.batch.plans import BatchPlans
from dmi_protocol.kinds.batch.processes import BatchProcesses
from dmi_protocol.kinds.batch.state import BatchJob, is_fit
from dmi_protocol.kinds.batch.views import BatchViews
from dmi_protocol.kinds.deployment.commands import DeploymentCommands
from dmi_protocol.kinds.deployment.plans import DeploymentPlans
from dmi_protocol.kinds.deployment.processes import DeploymentProcesses
from dmi_protocol.kinds.deployment.state import DeploymentJob, is_deployed
from dmi_protocol.kinds.deployment.state import is_fit as is_deployable
from dmi_protocol.kinds.deployment.views import DeploymentViews
from dmi_protocol.kinds.kind import Kind
from dmi_protocol.kinds.training.commands import TrainingCommands
from dmi_protocol.kinds.training.plans import TrainingPlans
from dmi_protocol.kinds.training.processes import TrainingProcesses
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.kinds.training.views import TrainingViews
from dmi_protocol.messages.roles import Versions
from dmi_protocol.reasons import AlreadyServed, Malformed, Reason, UnknownModel

_TRAINING = Kind("training", TrainingCommands(), TrainingPlans(), TrainingProcesses(), TrainingViews())
_BATCH = Kind("batch", BatchCommands(), BatchPlans(), BatchProcesses(), BatchViews())
_DEPLOYMENT = Kind("deployment", DeploymentCommands(), DeploymentPlans(), DeploymentProcesses(), DeploymentViews())


def new_job(job: JobId, command: Submit, index: int, state: ClusterState) -> AnyJob | Reason:
    """The job that the entry at ``index`` submits, or why it can be none."""
    if min(1 if said is None else said for said in (command.spec.cpus, command.spec.memory)) < 1:
        return Malformed("share of a node", command.spec.name)
    if isinstance(command.spec, BatchSpec | DeploymentSpec):
        model = find(state.models, command.spec.model.id)
        if model is None or not model.is_known_as(command.spec.model.content):
            return UnknownModel(command.spec.model.id)
    if isinstance(command.spec, DeploymentSpec):
        known = next((other.id for other in state.jobs.values() if is_deployed(other, command.spec.name)), None)
        if known is not None:
            return AlreadyServed(command.spec.name, known)
        if not is_deployable(command.spec) or command.bundle:
            return Malformed("deployment", command.spec.name)
        return DeploymentJob(
            id=job,
            spec=command.spec,
            bundle=command.bundle,
            holders=command.holders,
            submitted_at=index,
            versions=Versions(command.spec.model),
            scale=command.spec.least,
        )
    if isinstance(command.spec, BatchSpec):
        if not is_fit(command.spec):
            return Malformed("job", command.spec.name)
        packs = dict.fromkeys(command.spec.packs, command.holders)
        return BatchJob(job, command.spec, command.bundle, command.holders, index, packs=packs)
    return TrainingJob(job, command.spec, command.bundle, command.holders, index)


def kind_of(job: AnyJob) -> Kind[Any]:
    """The room that this job belongs to."""
    if isinstance(job, DeploymentJob):
        return _DEPLOYMENT
    return _BATCH if isinstance(job, BatchJob) else _TRAINING
