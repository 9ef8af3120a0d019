"""What the commands of jobs do to the state. What is a matter of the job's kind is decided there (``kinds/``)."""

from dmi_protocol import limits
from dmi_protocol.address import is_address
from dmi_protocol.cluster.command import (
    BindRole,
    Cancel,
    CommitSlice,
    CompleteRole,
    Finish,
    JobCommand,
    KindCommand,
    LoseRole,
    MarkBusy,
    Place,
    Placement,
    ReadyRole,
    Recruit,
    RefuseVersion,
    RemoveJob,
    ReportPair,
    SetVersions,
    Submit,
    WakeDeployment,
)
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState, Outcome
from dmi_protocol.identity import JobId, is_public_key, job_id
from dmi_protocol.kinds.all_kinds import kind_of, new_job
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.job import (
    CANCELLED,
    ENDED,
    FAILED,
    QUEUED,
    RECOVERING,
    STARTING,
    EndpointRecord,
)
from dmi_protocol.messages.roles import Endpoint
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import (
    Cancelled,
    CrashedOften,
    JobEnded,
    JobGoesOn,
    LimitReached,
    Loss,
    NameTaken,
    PairSilent,
    Reason,
    RoleDied,
    RoleFailed,
    RoleUnready,
    Stale,
    UnknownJob,
    UnknownModel,
)

_STALE = Outcome(refusal=Stale())
_DONE = Outcome()


def do_for_job(state: ClusterState, index: int, command: JobCommand) -> Outcome:
    """Apply a job's command of the entry at ``index``."""
    match command:
        case Submit():
            return _submit(state, index, command)
        case Cancel():
            return _cancel(state, command)
        case RemoveJob():
            return _remove(state, command)
        case Place():
            return _place(state, command)
        case Recruit():
            return _recruit(state, command)
        case BindRole():
            return _bind(state, command)
        case LoseRole():
            return _lose(state, command)
        case Finish():
            return _finish(state, command) if command.state in ENDED else _STALE
        case _:
            return _do_for_kind(state, command)


def _do_for_kind(state: ClusterState, command: KindCommand) -> Outcome:
    named = (
        command.role.job
        if isinstance(
            command, ReadyRole | ReportPair | MarkBusy | CompleteRole | CommitSlice | RefuseVersion | WakeDeployment
        )
        else command.job
    )
    job = state.jobs.get(named)
    if isinstance(command, SetVersions):
        known = [find(state.models, ref.id) for ref in command.versions.all]
        for ref, version in zip(command.versions.all, known, strict=True):
            if version is None or not version.is_known_as(ref.content):
                return Outcome(refusal=UnknownModel(ref.id))
    return _DONE if job is not None and kind_of(job).commands.apply(job, command) else _STALE


def _submit(state: ClusterState, index: int, command: Submit) -> Outcome:
    job = job_id(command.spec.name, command.request)
    known = state.jobs.get(job)
    if known is not None:  # its outcome was forgotten meanwhile; or six digits were not enough: nothing is overwritten
        is_same = known.spec == command.spec and known.bundle == command.bundle
        return Outcome(job) if is_same else Outcome(refusal=NameTaken(job))
    made = new_job(job, command, index, state)
    if isinstance(made, Reason):
        return Outcome(refusal=made)
    if len(state.jobs) >= limits.JOBS_REMEMBERED:
        ended = next((job.id for job in state.jobs.values() if job.state in ENDED), None)
        if ended is None:
            return Outcome(refusal=LimitReached("jobs", limits.JOBS_REMEMBERED))
        del state.jobs[ended]
    state.jobs[job] = made
    return Outcome(job)


def _cancel(state: ClusterState, command: Cancel) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None:
        return Outcome(refusal=UnknownJob(command.job))
    if job.state in ENDED:
        return Outcome(refusal=JobEnded(job.id, job.state))
    job.state, job.reason = CANCELLED, Cancelled()
    return _DONE


def _remove(state: ClusterState, command: RemoveJob) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None:
        return Outcome(refusal=UnknownJob(command.job))
    if job.state not in ENDED:
        return Outcome(refusal=JobGoesOn(job.id, job.state))
    del state.jobs[job.id]
    return _DONE


def _place(state: ClusterState, command: Place) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None or job.state not in {QUEUED, RECOVERING} or job.is_placed:
        return _STALE
    if command.generation != job.generation + 1 or not command.placements:
        return _STALE
    if not _are_placements(command.placements, job.id, command.generation):
        return _STALE
    if not kind_of(job).commands.is_placeable(job, command) or not _has_room(state, job, command.placements):
        return _STALE
    job.generation = job.start_generation = command.generation
    job.place(_in_order(command.placements))
    kind_of(job).commands.placed(job, command)
    job.next_index = 1 + max(placement.role.index for placement in command.placements)
    if job.state == QUEUED:
        job.state = STARTING
    return _DONE  # a node that was removed meanwhile is lost like any other: the job is placed again


def _recruit(state: ClusterState, command: Recruit) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None or not job.is_in_force(command.generation) or command.generation != job.generation:
        return _STALE
    if not kind_of(job).commands.may_recruit(job) or not _are_placements(
        command.placements, job.id, job.generation + 1
    ):
        return _STALE
    if any(placement.role.index < job.next_index for placement in command.placements):
        return _STALE
    if not _has_room(state, job, (*job.placements, *command.placements)):
        return _STALE
    job.place(_in_order((*job.placements, *command.placements)))
    job.next_index = 1 + max(placement.role.index for placement in command.placements)
    job.born = max(job.born, *(placement.role.generation for placement in command.placements))
    return _DONE


def _has_room(state: ClusterState, job: AnyJob, placements: tuple[Placement, ...]) -> bool:
    """What was decided may be out of date: another job was placed meanwhile."""
    is_full = bool(job.spec.share) and Room(state).is_full_for(job, placements)
    job.turned_away += is_full
    return not is_full


def _in_order(placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
    return tuple(sorted(placements, key=lambda placement: (placement.role, placement.node)))


def _are_placements(placements: tuple[Placement, ...], job: JobId, generation: int) -> bool:
    """Some, each of another process of this very generation."""
    roles = [placement.role for placement in placements]
    are_new = all(role.job == job and role.generation == generation and role.index >= 0 for role in roles)
    return bool(roles) and are_new and len({(role.role, role.index) for role in roles}) == len(roles)


def _bind(state: ClusterState, command: BindRole) -> Outcome:
    role = command.role
    job = state.jobs.get(role.job)
    if job is None or not job.wants(role) or any(record.endpoint.key == role for record in job.endpoints):
        return _STALE
    member = state.members.get(dict(job.roles())[role])
    if member is None or not is_address(command.address) or not is_public_key(command.public_key):
        return _STALE
    unlike = kind_of(job).commands.unlike(job, command, member.name)
    if unlike is not None:
        return _lose(state, LoseRole(command.request, role, unlike))
    endpoint = Endpoint(role, member.node, member.name, command.address, command.public_key)
    job.endpoints = (*job.endpoints, EndpointRecord(endpoint, command.pid))
    kind_of(job).commands.bound(job, command)
    return _DONE


def _lose(state: ClusterState, command: LoseRole) -> Outcome:
    """A process is gone; what that means for the job is a matter of its kind."""
    role, job = command.role, state.jobs.get(command.role.job)
    if job is None or not job.wants(role) or kind_of(job).commands.is_safe_without(job, role):
        return _STALE
    kind, node = kind_of(job).commands, dict(job.roles())[role]
    is_of_use = kind.is_of_use(job, role)
    if is_of_use and _is_crash(command.reason) and role.generation > job.crashed_in:
        step = kind.reached(job, command)
        job.reached, job.crashes = (job.reached, job.crashes + 1) if step <= job.reached else (step, 1)
        job.crashed_in = job.generation
    if job.crashes >= (limits.DEATHS if _ended_by_itself(command.reason) else limits.CRASHES):
        job.state, job.reason = FAILED, CrashedOften(job.crashes, command.reason)
        kind.gave_up(job)
        return _DONE
    if _fails_too_often(job, command):
        job.state, job.reason = FAILED, CrashedOften(job.failures, command.reason)
        kind.gave_up(job)
        return _DONE
    if not is_of_use or isinstance(command.reason, PairSilent | RoleUnready) or _is_of_host(command.reason):
        job.misses[node] = job.misses.get(node, 0) + 1
    job.placements = tuple(placement for placement in job.placements if placement.role != role)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key != role)
    kind.lost(job, role, command.reason)
    return _DONE


def _fails_too_often(job: AnyJob, command: LoseRole) -> bool:
    kind = kind_of(job).commands
    if kind.most_failures is None or not isinstance(command.reason, RoleFailed):
        return False
    step = kind.reached(job, command)
    job.failed_at, job.failures = (job.failed_at, job.failures + 1) if step <= job.failed_at else (step, 1)
    return job.failures >= kind.most_failures


_FROM_OTHERS = frozenset({1, 2, 9, 15})
"""Signals that people send, and the kernel where memory is short: HUP, INT, KILL, TERM."""


def _is_crash(reason: Loss) -> bool:
    """Does it speak of the code, which would do the same again? Not of the network, nor of a disk."""
    return isinstance(reason, RoleDied | RoleUnready) or (
        isinstance(reason, RoleFailed)
        and reason.kind not in {"peer-silent", "peer-broken", "disk", "machine", "memory"}
    )


def _ended_by_itself(reason: Loss) -> bool:
    """It exited, or did what a processor forbids: nobody killed or stopped it, and no host is to blame."""
    return isinstance(reason, RoleDied) and not reason.stalled and reason.signal not in _FROM_OTHERS


def _is_of_host(reason: Loss) -> bool:
    return isinstance(reason, RoleFailed) and reason.kind in {
        "disk",
        "machine",
        "memory",
        "port",
        "certificate",
        "cannot-start-here",
    }


def _finish(state: ClusterState, command: Finish) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None:
        return _STALE
    is_waiting = not job.is_placed and job.state not in ENDED and command.generation == job.generation
    if not is_waiting and not job.is_in_force(command.generation):
        return _STALE
    job.state, job.reason = command.state, command.reason
    kind_of(job).commands.finished(job, command)
    return _DONE
