"""A job of any kind, in the replicated state."""

from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.training.state import TrainingJob

AnyJob = TrainingJob | BatchJob | DeploymentJob
