"""What the commands of jobs do to the state. A command of processes that are not wanted any more does nothing."""

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.address import is_address
from dmi_protocol.cluster.command import (
    BindRole,
    Cancel,
    CompleteRole,
    Finish,
    HoldBlob,
    JobCommand,
    KeepPart,
    LoseRole,
    Place,
    Placement,
    ReadyRole,
    Reassign,
    Recopy,
    Recruit,
    ReportPair,
    RoleCommand,
    SetCheckpointHolders,
    Submit,
    SyncReplica,
)
from dmi_protocol.cluster.state import ClusterState, Outcome
from dmi_protocol.identity import JobId, is_public_key, job_id
from dmi_protocol.kinds.job import CANCELLED, ENDED, FAILED, QUEUED, RECOVERING, RUNNING, STARTING, EndpointRecord
from dmi_protocol.kinds.training.state import Checkpoint, KeptPart, Pair, TrainingJob
from dmi_protocol.messages.roles import Assignment, Endpoint, RoleKey
from dmi_protocol.reasons import (
    Cancelled,
    CrashedOften,
    JobEnded,
    LimitReached,
    Loss,
    NameTaken,
    PairSilent,
    RoleDied,
    RoleFailed,
    RoleUnready,
    Stale,
    UnknownJob,
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
        case Place():
            return _place(state, command)
        case Recruit():
            return _recruit(state, command)
        case Reassign():
            return _reassign(state, command)
        case KeepPart():
            return _keep(state, command)
        case SetCheckpointHolders():
            return _set_checkpoint_holders(state, command)
        case Recopy():
            return _recopy(state, command)
        case HoldBlob():
            return _hold(state, command)
        case Finish():
            return _finish(state, command) if command.state in ENDED else _STALE
        case _:
            return _do_for_role(state, command)


def _do_for_role(state: ClusterState, command: RoleCommand) -> Outcome:
    match command:
        case BindRole():
            return _bind(state, command)
        case ReadyRole():
            return _ready(state, command)
        case SyncReplica():
            return _sync(state, command)
        case ReportPair():
            return _pair(state, command)
        case LoseRole():
            return _lose(state, command)
        case CompleteRole():
            return _complete(state, command)


def _submit(state: ClusterState, index: int, command: Submit) -> Outcome:
    job = job_id(command.spec.name, command.request)
    known = state.jobs.get(job)
    if (
        known is not None
    ):  # its outcome was forgotten meanwhile; or six digits were not enough, and nothing is overwritten
        is_same = known.spec == command.spec and known.bundle == command.bundle
        return Outcome(job) if is_same else Outcome(refusal=NameTaken(job))
    if len(state.jobs) >= limits.JOBS_REMEMBERED:
        ended = next((job.id for job in state.jobs.values() if job.state in ENDED), None)
        if ended is None:
            return Outcome(refusal=LimitReached("jobs", limits.JOBS_REMEMBERED))
        del state.jobs[ended]
    state.jobs[job] = TrainingJob(job, command.spec, command.bundle, command.holders, index)
    return Outcome(job)


def _cancel(state: ClusterState, command: Cancel) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None:
        return Outcome(refusal=UnknownJob(command.job))
    if job.state in ENDED:
        return Outcome(refusal=JobEnded(job.id, job.state))
    job.state, job.reason = CANCELLED, Cancelled()
    return _DONE


def _place(state: ClusterState, command: Place) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None or job.state not in {QUEUED, RECOVERING} or job.is_placed:
        return _STALE
    if command.generation != job.generation + 1 or not command.placements:
        return _STALE
    if command.restore != (None if job.checkpoint is None else job.checkpoint.step):
        return _STALE
    if not _are_placements(command.placements, job.id, command.generation) or not _is_assignment(command.assignment):
        return _STALE
    placed = {(placement.role.role, placement.role.index) for placement in command.placements}
    if not _members(command.assignment) <= placed or len(command.checkpoint_holders) not in {
        0,
        len(command.assignment.shards),
    }:
        return _STALE
    job.generation = job.start_generation = command.generation
    job.restore, job.checkpoint_holders = command.restore, command.checkpoint_holders
    job.placements, job.assignment = _in_order(command.placements), command.assignment
    job.next_index = 1 + max(placement.role.index for placement in command.placements)
    if job.state == QUEUED:
        job.state = STARTING
    return _DONE  # a node that was removed meanwhile is lost like any other: the job is placed again


def _in_force(state: ClusterState, job: JobId, generation: int) -> TrainingJob | None:
    """The job, when it goes on and this generation is one of the processes that live now."""
    found = state.jobs.get(job)
    return (
        found
        if found is not None and found.goes_on and found.start_generation <= generation <= found.generation
        else None
    )


def _job_that_wants(state: ClusterState, role: RoleKey) -> TrainingJob | None:
    """The job, when it wants this very process."""
    job = state.jobs.get(role.job)
    return job if job is not None and job.goes_on and role in dict(job.roles()) else None


def _recruit(state: ClusterState, command: Recruit) -> Outcome:
    job = _in_force(state, command.job, command.generation)
    if job is None or not job.runs or command.generation != job.generation:
        return _STALE
    if not _are_placements(command.placements, job.id, job.generation + 1):
        return _STALE
    if any(placement.role.index < job.next_index for placement in command.placements):
        return _STALE
    job.placements = _in_order((*job.placements, *command.placements))
    job.next_index = 1 + max(placement.role.index for placement in command.placements)
    job.born = max(job.born, *(placement.role.generation for placement in command.placements))
    return _DONE


def _reassign(state: ClusterState, command: Reassign) -> Outcome:
    """Everybody in the assignment lives and is bound; primaries are among those in sync."""
    job = state.jobs.get(command.job)
    if (
        job is None
        or not job.goes_on
        or not job.runs
        or job.assignment is None
        or command.generation != job.generation + 1
    ):
        return _STALE
    bound = {(record.endpoint.key.role, record.endpoint.key.index) for record in job.endpoints}
    if not _is_assignment(command.assignment):
        return _STALE
    if not _members(command.assignment) <= bound or len(command.assignment.shards) != len(job.assignment.shards):
        return _STALE
    for shard, (old, new) in enumerate(zip(job.assignment.shards, command.assignment.shards, strict=True)):
        caught_up = {server for synced, server in job.synced if synced == shard}
        if not set(new.in_sync) <= {*old.in_sync, *caught_up}:
            return _STALE
    if {(role.role, role.index) for role in command.dismissed} & _members(command.assignment):
        return _STALE
    job.placements = tuple(placement for placement in job.placements if placement.role not in command.dismissed)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key not in command.dismissed)
    job.generation, job.assignment, job.synced, job.pairs = command.generation, command.assignment, (), ()
    job.state, job.reason = RUNNING, None if command.is_full else job.reason
    return _DONE


def _in_order(placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
    return tuple(sorted(placements, key=lambda placement: (placement.role, placement.node)))


def _are_placements(placements: tuple[Placement, ...], job: JobId, generation: int) -> bool:
    """Some, each of another process of this very generation."""
    roles = [placement.role for placement in placements]
    are_new = all(role.job == job and role.generation == generation and role.index >= 0 for role in roles)
    return bool(roles) and are_new and len({(role.role, role.index) for role in roles}) == len(roles)


def _is_assignment(assignment: Assignment) -> bool:
    """Has each worker a speed, somebody a share, and each shard different copies?"""
    workers = (
        len(set(assignment.workers)) == len(assignment.workers) == len(assignment.speeds)
        and assignment.lead in assignment.workers
    )
    speeds = any(assignment.speeds) and all(0 <= speed < float("inf") for speed in assignment.speeds)
    copies = [(*replicas.in_sync, *replicas.filling) for replicas in assignment.shards]
    return workers and speeds and bool(copies) and all(len(set(them)) == len(them) for them in copies)


def _members(assignment: Assignment) -> set[tuple[str, int]]:
    servers = {("server", i) for r in assignment.shards for i in (*r.in_sync, *r.filling)}
    return servers | {("worker", worker) for worker in (*assignment.workers, assignment.lead)}


def _ready(state: ClusterState, command: ReadyRole) -> Outcome:
    job = _job_that_wants(state, command.role)
    if job is None or command.role in job.ready:
        return _STALE
    job.ready = (*job.ready, command.role)
    return _DONE


def _sync(state: ClusterState, command: SyncReplica) -> Outcome:
    """Only what is said in the generation in force counts: a primary says it again in each one."""
    job = _in_force(state, command.job, command.generation)
    if job is None or job.assignment is None or command.generation != job.generation:
        return _STALE
    if not 0 <= command.shard < len(job.assignment.shards):
        return _STALE
    if command.server not in job.assignment.shards[command.shard].filling:
        return _STALE
    job.synced = tuple(sorted({*job.synced, (command.shard, command.server)}))
    return _DONE


def _pair(state: ClusterState, command: ReportPair) -> Outcome:
    job = _job_that_wants(state, command.role)
    if job is None or command.generation != job.generation:
        return _STALE
    named = [
        placement.role
        for placement in job.placements
        if (placement.role.role, placement.role.index) == (command.peer, command.index)
    ]
    if not named or named[0] == command.role:
        return _STALE
    job.pairs = (*job.pairs, Pair(command.role, named[0], command.silent_ms))
    return _DONE


def _lose(state: ClusterState, command: LoseRole) -> Outcome:
    """Those who are left go on, if they have all that was ever shown. If not, what was computed since the last checkpoint
    is computed again, with the same bits."""
    job = _job_that_wants(state, command.role)
    if job is None or (job.final and job.is_done(command.role)):  # its work is done, and kept
        return _STALE
    is_of_use = _is_of_use(job, command.role)
    if is_of_use and _is_crash(command.reason) and command.role.generation > job.crashed_in:
        step = -1 if command.step is None else command.step
        job.reached, job.crashes = (job.reached, job.crashes + 1) if step <= job.reached else (step, 1)
        job.crashed_in = job.generation
    if job.crashes >= limits.CRASHES:
        job.state, job.reason = FAILED, CrashedOften(job.crashes, command.reason)
        job.step = job.reached if job.reached >= 0 else job.step
        return _DONE
    node = dict(job.roles())[command.role]
    if not is_of_use or isinstance(command.reason, PairSilent | RoleUnready) or _is_of_host(command.reason):
        job.misses[node] = job.misses.get(node, 0) + 1
    job.placements = tuple(placement for placement in job.placements if placement.role != command.role)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key != command.role)
    job.completed = tuple(role for role in job.completed if role != command.role)
    job.pairs = tuple(pair for pair in job.pairs if command.role not in {pair.role, pair.peer})
    if not _goes_on_without(job):
        _end_all(job, command.reason)
    else:
        is_assigned = job.assignment is not None and (command.role.role, command.role.index) in _members(job.assignment)
        job.state, job.reason = RECOVERING if is_assigned else job.state, command.reason
    return _DONE


def _is_crash(reason: Loss) -> bool:
    """Does it speak of the code, which would do the same again? Not of the network, nor of a disk."""
    return isinstance(reason, RoleDied | RoleUnready) or (
        isinstance(reason, RoleFailed) and reason.kind not in {"peer-silent", "peer-broken", "disk"}
    )


def _is_of_host(reason: Loss) -> bool:
    return isinstance(reason, RoleFailed) and reason.kind == "disk"


def _is_of_use(job: TrainingJob, role: RoleKey) -> bool:
    """Has it done its part? A recruit has when it has caught up."""
    copies = (
        {server for shard in job.assignment.shards for server in shard.in_sync} if job.assignment is not None else set()
    )
    is_copy = role.role == "server" and role.index in copies
    return role.generation == job.start_generation or role in job.ready or is_copy


def _goes_on_without(job: TrainingJob) -> bool:
    """Has every shard a copy in sync, and the job a worker with a version and work to do?"""
    if not job.runs or job.assignment is None:
        return False
    left = {(placement.role.role, placement.role.index) for placement in job.placements}
    able = [
        w
        for w, speed in zip(job.assignment.workers, job.assignment.speeds, strict=True)
        if speed and ("worker", w) in left
    ]
    return bool(able) and all(any(("server", i) in left for i in shard.in_sync) for shard in job.assignment.shards)


def _end_all(job: TrainingJob, reason: Loss) -> None:
    job.state, job.reason = (RECOVERING, reason) if job.has_run else (QUEUED, None)
    job.generation = max(job.generation, job.born)
    job.placements, job.assignment, job.checkpoint_holders = (), None, ()
    job.endpoints, job.completed, job.ready, job.synced, job.pairs = (), (), (), (), ()
    job.runs = False
    job.parts, job.final_parts = {}, {}


def _set_checkpoint_holders(state: ClusterState, command: SetCheckpointHolders) -> Outcome:
    job = _in_force(state, command.job, command.generation)
    if job is None or job.assignment is None or len(command.checkpoint_holders) not in {0, len(job.assignment.shards)}:
        return _STALE
    job.checkpoint_holders, job.holder_changes = command.checkpoint_holders, job.holder_changes + 1
    for step in sorted(job.parts):
        _judge(job, step, is_final=False)
    for step in job.final_parts:
        _judge(job, step, is_final=True)
    return _DONE


def _recopy(state: ClusterState, command: Recopy) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None or command.blob not in job.blobs():
        return _STALE
    job.copies, job.recopied = job.copies | {command.blob: command.node}, job.recopied + 1
    return _DONE


def _hold(state: ClusterState, command: HoldBlob) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None or job.copies.get(command.blob) != command.node:
        return _STALE
    del job.copies[command.blob]
    if command.blob == job.bundle:
        job.holders = tuple(dict.fromkeys((*job.holders, command.node)))
    if job.checkpoint is not None:
        parts = tuple(
            replace(part, nodes=tuple(dict.fromkeys((*part.nodes, command.node))))
            if part.blob == command.blob
            else part
            for part in job.checkpoint.parts
        )
        job.checkpoint = replace(job.checkpoint, parts=parts)
    return _DONE


def _bind(state: ClusterState, command: BindRole) -> Outcome:
    role: RoleKey = command.role
    job = _job_that_wants(state, role)
    node = dict(job.roles()).get(role) if job is not None else None
    member = state.members.get(node) if node is not None else None
    if job is None or member is None or any(record.endpoint.key == role for record in job.endpoints):
        return _STALE
    if not is_address(command.address) or not is_public_key(command.public_key):
        return _STALE
    endpoint = Endpoint(role, member.node, member.name, command.address, command.public_key)
    job.endpoints = (*job.endpoints, EndpointRecord(endpoint, command.pid))
    if not job.runs and len(job.endpoints) == len(job.placements):
        job.state, job.reason = RUNNING, None
        job.runs = job.has_run = True
    return _DONE


def _complete(state: ClusterState, command: CompleteRole) -> Outcome:
    job = _job_that_wants(state, command.role)
    if job is None or command.role in job.completed:
        return _STALE
    job.completed = (*job.completed, command.role)
    if command.step is not None:
        job.step, job.loss = command.step, command.loss
    return _DONE


def _keep(state: ClusterState, command: KeepPart) -> Outcome:
    """A checkpoint is whole, or absent: it counts once every part is on as many disks as the placement wants."""
    job = _in_force(state, command.job, command.generation)
    if job is None or (job.checkpoint is not None and (command.step < job.checkpoint.step or job.final)):
        return _STALE
    part, primaries = command.part, job.primaries()
    if not 0 <= part.shard < len(primaries):
        return _STALE
    told = job.final_parts if command.final else job.parts
    shards = {known.shard: known for known in told.get(command.step, ())}
    known = shards.get(part.shard)
    nodes = known.nodes if known is not None and known.blob == part.blob else ()
    if part.node != primaries[part.shard] and (
        not nodes or part.node not in job.checkpoint_holders[part.shard : part.shard + 1]
    ):
        return _STALE
    nodes = tuple(dict.fromkeys((*nodes, part.node)))
    shards[part.shard] = KeptPart(part.shard, part.blob, part.size_bytes, nodes)
    told[command.step] = tuple(shards[shard] for shard in sorted(shards))
    while len(job.parts) > limits.PARTIAL_CHECKPOINTS:
        del job.parts[min(job.parts)]
    _judge(job, command.step, is_final=command.final)
    return _DONE


def _judge(job: TrainingJob, step: int, *, is_final: bool) -> None:
    """Is the checkpoint of ``step`` whole now?"""
    parts = (job.final_parts if is_final else job.parts).get(step, ())
    copies = 2 if job.checkpoint_holders else 1
    shards = 0 if job.assignment is None else len(job.assignment.shards)
    if len(parts) == shards and all(len(part.nodes) >= copies for part in parts):
        job.checkpoint, job.final = Checkpoint(step, parts), is_final
        job.copies = {blob: node for blob, node in job.copies.items() if blob in job.blobs()}
        job.parts = {later: found for later, found in job.parts.items() if later > step}


def _finish(state: ClusterState, command: Finish) -> Outcome:
    waits = state.jobs.get(command.job)
    is_waiting = waits is not None and not waits.is_placed and waits.state not in ENDED
    is_of_it = waits is not None and is_waiting and command.generation == waits.generation
    job = waits if is_of_it else _in_force(state, command.job, command.generation)
    if job is None:
        return _STALE
    job.state, job.reason = command.state, command.reason
    job.step = command.step if command.step is not None else job.step
    return _DONE
