"""What the commands of a deployment do to it: total, and deterministic."""

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    BindRole,
    DeploymentStart,
    Dismiss,
    Finish,
    KindCommand,
    LoseRole,
    Place,
    RefuseVersion,
    SetScale,
    SetVersions,
    WakeDeployment,
)
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import ENDED, QUEUED, RECOVERING, RUNNING, STARTING
from dmi_protocol.messages.roles import RoleKey, Versions
from dmi_protocol.model import ModelRef
from dmi_protocol.reasons import Loss, VersionUnusable

_ROLES = {"replica", "gateway"}


class DeploymentCommands:
    """See ``Commands``."""

    most_failures: int | None = None

    def is_placeable(self, job: DeploymentJob, command: Place) -> bool:
        """Any number of replicas and gateways can begin."""
        return isinstance(command.start, DeploymentStart) and all(
            p.role.role in _ROLES and 0 <= p.stage < job.stages for p in command.placements
        )

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
        if len(job.endpoints) == len(job.placements) and job.serves and not isinstance(job.reason, VersionUnusable):
            job.reason = None

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
        match command:
            case Dismiss():
                return _dismiss(job, command)
            case SetVersions():
                return _set_versions(job, command)
            case RefuseVersion():
                return _refuse_version(job, command)
            case SetScale(_, _, replicas):
                return _set_scale(job, replicas)
            case WakeDeployment(_, role):
                return job.wants(role) and job.is_asleep and _set_scale(job, 1)
            case _:
                return False


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


def _set_versions(job: DeploymentJob, command: SetVersions) -> bool:
    versions = command.versions
    are_fit = 0 <= versions.share <= 100 and all(_is_of(job, ref) for ref in versions.all)
    if job.state in ENDED or not are_fit or len({ref.id for ref in versions.all}) < len(versions.all):
        return False
    if any(ref.id == other.id and ref != other for ref in versions.all for other in job.versions.all):
        return False  # cut in another way: its stages would be of two cuts
    before, job.pinned = job.versions, command.pinned
    if versions.current.id != before.current.id:
        job.history = (*job.history, before.current)[-limits.VERSIONS_REMEMBERED :]
    for ref in versions.all:
        job.unusable.pop(ref.id, None)
    if versions != before:
        job.versions, job.changes = versions, job.changes + 1
    if isinstance(job.reason, VersionUnusable):
        job.reason = None
    return True


def _is_of(job: DeploymentJob, ref: ModelRef) -> bool:
    """Is it a version of its model, and cut as that is?"""
    is_alike = len(ref.content.stages) == len(job.spec.model.content.stages)
    return ref.id.partition(":")[0] == job.spec.name and is_alike


def _refuse_version(job: DeploymentJob, command: RefuseVersion) -> bool:
    """Nobody computes with it, and it is not taken again by itself. The first one of all has nothing before it: its replicas say
    so as they start."""
    versions, refused = job.versions, command.version
    if not job.wants(command.role) or refused not in job.models():
        return False
    if versions.canary is not None and refused == versions.canary.id:
        job.versions = Versions(versions.current)
    elif job.history:
        *history, before = job.history
        job.history, job.versions = tuple(history), Versions(before)
    else:
        return False
    while len(job.unusable) >= limits.VERSIONS_REMEMBERED:
        del job.unusable[next(iter(job.unusable))]
    job.unusable[refused] = command.text
    job.changes += 1
    if job.reason is None:
        job.reason = VersionUnusable(refused, job.versions.current.id, command.text)
    return True


def _set_scale(job: DeploymentJob, replicas: int) -> bool:
    most = job.spec.most
    if job.state in ENDED or most is None or not job.spec.least <= replicas <= most or replicas == job.scale:
        return False
    job.scale = replicas
    job.changes += 1
    return True
