"""What the commands of blobs and models do to the state."""

from dmi_protocol.cluster import models
from dmi_protocol.cluster.command import (
    AddModel,
    BlobCommand,
    CutModel,
    HoldBlob,
    ModelCommand,
    PublishVersion,
    Recopy,
    RemoveModel,
)
from dmi_protocol.cluster.holding import Holding
from dmi_protocol.cluster.state import ClusterState, Outcome
from dmi_protocol.identity import JobId
from dmi_protocol.kinds.job import ENDED
from dmi_protocol.reasons import Stale

_STALE = Outcome(refusal=Stale())
_DONE = Outcome()


def do_for_blobs(state: ClusterState, command: BlobCommand | ModelCommand) -> Outcome:
    """Apply a command of a blob or of a model."""
    match command:
        case Recopy():
            return _recopy(state, command)
        case HoldBlob():
            return _hold(state, command)
        case AddModel():
            value, refusal = models.add(state.models, command)
            return Outcome(value, refusal)
        case RemoveModel():
            return Outcome(refusal=models.remove(state.models, command, _used(state)))
        case CutModel():
            value, refusal = models.cut(state.models, command)
            return Outcome(value, refusal)
        case PublishVersion():
            return _publish(state, command)


def _used(state: ClusterState) -> dict[str, JobId]:
    """The versions that jobs compute with, and by whom."""
    going_on = [job for job in state.jobs.values() if job.state not in ENDED]
    return {model: job.id for job in going_on for model in job.models()}


def _publish(state: ClusterState, command: PublishVersion) -> Outcome:
    job = state.jobs.get(command.role.job)
    if job is None or not job.wants(command.role) or command.role.role != "worker":
        return _STALE
    node = dict(job.roles())[command.role]
    add = AddModel(command.request, command.name, command.content, (node,), command.at_unix)
    value, refusal = models.add(state.models, add, job.id)
    if refusal is None:
        models.prune(state.models, command.name, job.id, _used(state))
    return Outcome(value, refusal)


def _owner(state: ClusterState, owner: str) -> Holding | None:
    return state.jobs.get(JobId(owner)) or models.find(state.models, owner)


def _recopy(state: ClusterState, command: Recopy) -> Outcome:
    owner = _owner(state, command.owner)
    if owner is None or command.blob not in owner.blobs() or command.nth != owner.asked.get(command.blob, 0):
        return _STALE
    owner.copies, owner.asked = (
        owner.copies | {command.blob: command.node},
        owner.asked | {command.blob: command.nth + 1},
    )
    return _DONE


def _hold(state: ClusterState, command: HoldBlob) -> Outcome:
    owner = _owner(state, command.owner)
    if owner is None or owner.copies.get(command.blob) != command.node:
        return _STALE
    del owner.copies[command.blob]
    owner.hold(command.blob, command.node)
    return _DONE
