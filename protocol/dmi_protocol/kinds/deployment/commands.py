"""What the commands of a deployment do to it: total, and deterministic."""

from dmi_protocol.cluster.command import BindRole, DeploymentStart, Dismiss, Finish, KindCommand, LoseRole, Place
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import QUEUED, RECOVERING, RUNNING, STARTING
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.reasons import Loss

_ROLES = {"replica", "gateway"}


class DeploymentCommands:
    """See ``Commands``."""

    def is_placeable(self, job: DeploymentJob, command: Place) -> bool:
        """Any number of replicas and gateways can begin."""
        return isinstance(command.start, DeploymentStart) and all(p.role.role in _ROLES for p in command.placements)

    def placed(self, job: DeploymentJob, command: Place) -> None:
        """They begin when they are bound."""

    def may_recruit(self, job: DeploymentJob) -> bool:
        """Nobody needs to know of a recruit before it is bound."""
        return True

    def unlike(self, job: DeploymentJob, command: BindRole, node: str) -> Loss | None:
        """Hosts of many kinds may answer requests."""
        return None

    def bound(self, job: DeploymentJob, command: BindRole) -> None:
        """It takes part at once. With the last one that is wanted a loss is made good."""
        job.changes += 1
        if job.serves:
            job.state, job.has_run = RUNNING, True
        if len(job.endpoints) == len(job.placements):
            job.reason = None if job.serves else job.reason

    def is_safe_without(self, job: DeploymentJob, role: RoleKey) -> bool:
        """Whoever is gone must not be asked any more."""
        return False

    def is_of_use(self, job: DeploymentJob, role: RoleKey) -> bool:
        """Has it been bound, or begun with the job?"""
        return role.generation == job.start_generation or _is_bound(job, role)

    def reached(self, job: DeploymentJob, command: LoseRole) -> int:
        """To be bound is to have got further: what ends a process that has served is a request, and that is not the job's fault.
        One that ends before it has served would do so again."""
        return job.reached + _is_bound(job, command.role)

    def gave_up(self, job: DeploymentJob) -> None:
        """Nobody serves it any more."""

    def lost(self, job: DeploymentJob, role: RoleKey, reason: Loss) -> None:
        """The others answer what it would have answered."""
        job.changes += 1
        job.trouble = reason
        _look(job, reason)

    def finished(self, job: DeploymentJob, command: Finish) -> None:
        """It is over."""

    def apply(self, job: DeploymentJob, command: KindCommand) -> bool:
        """Did ``command``, which is one of a deployment alone, change anything?"""
        return isinstance(command, Dismiss) and _dismiss(job, command)


def _is_bound(job: DeploymentJob, role: RoleKey) -> bool:
    return any(record.endpoint.key == role for record in job.endpoints)


def _look(job: DeploymentJob, reason: Loss | None) -> None:
    """What state it is in, now that somebody is missing; ``reason`` says why, if that is a loss."""
    if not job.placements:
        job.generation = max(job.generation, job.born)
    if job.serves:
        job.reason = reason or job.reason
    elif job.has_run and (reason or job.trouble) is not None:
        job.state, job.reason = RECOVERING, reason or job.trouble
    else:
        job.state, job.reason = STARTING if job.placements else QUEUED, None


def _dismiss(job: DeploymentJob, command: Dismiss) -> bool:
    wanted = {role for role, _ in job.roles()}
    gone = set(command.dismissed)
    if not job.is_in_force(command.generation) or not gone or not gone <= wanted:
        return False
    job.placements = tuple(placement for placement in job.placements if placement.role not in gone)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key not in gone)
    job.changes += 1
    _look(job, None)
    if job.serves and len(job.endpoints) == len(job.placements):
        job.reason = None
    return True
