"""What the commands of a training do to it: total, and deterministic. A command of processes that are not wanted any more, or
of another generation than the one in force, does nothing."""

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    BindRole,
    CompleteRole,
    Finish,
    KeepPart,
    KindCommand,
    LoseRole,
    MarkBusy,
    Place,
    ReadyRole,
    Reassign,
    ReportPair,
    SetCheckpointHolders,
    SyncReplica,
    TrainingStart,
)
from dmi_protocol.kinds.job import QUEUED, RECOVERING, RUNNING
from dmi_protocol.kinds.training.state import Checkpoint, KeptPart, Pair, TrainingJob
from dmi_protocol.messages.roles import Assignment, RoleKey
from dmi_protocol.reasons import Loss


class TrainingCommands:
    """See ``Commands``."""

    most_failures: int | None = None

    def is_placeable(self, job: TrainingJob, command: Place) -> bool:
        """Does everybody who has a part in the assignment get a process, and is it the checkpoint of now?"""
        start = command.start
        if not isinstance(start, TrainingStart):
            return False
        if start.restore != (None if job.checkpoint is None else job.checkpoint.step):
            return False
        if not _is_assignment(start.assignment):
            return False
        placed = {(placement.role.role, placement.role.index) for placement in command.placements}
        holders = {0, len(start.assignment.shards)}
        return _members(start.assignment) <= placed and len(start.checkpoint_holders) in holders

    def placed(self, job: TrainingJob, command: Place) -> None:
        """The job begins, from its beginning or its checkpoint."""
        start = command.start
        assert isinstance(start, TrainingStart)
        job.restore, job.checkpoint_holders, job.assignment = start.restore, start.checkpoint_holders, start.assignment

    def may_recruit(self, job: TrainingJob) -> bool:
        """There is something to come into."""
        return job.runs

    def unlike(self, job: TrainingJob, command: BindRole, node: str) -> Loss | None:
        """Workers tell their servers, who compare."""
        return None

    def bound(self, job: TrainingJob, command: BindRole) -> None:
        """A process is bound. They begin together."""
        if not job.runs and len(job.endpoints) == len(job.placements):
            job.state, job.reason = RUNNING, None
            job.runs = job.has_run = True

    def is_safe_without(self, job: TrainingJob, role: RoleKey) -> bool:
        """Its work is done, and kept."""
        return job.final and job.is_done(role)

    def is_of_use(self, job: TrainingJob, role: RoleKey) -> bool:
        """Has it done its part? A recruit has when it has caught up."""
        shards = job.assignment.shards if job.assignment is not None else ()
        is_copy = role.role == "server" and any(role.index in shard.in_sync for shard in shards)
        return role.generation == job.start_generation or role in job.ready or is_copy

    def reached(self, job: TrainingJob, command: LoseRole) -> int:
        """The last step that was told."""
        return -1 if command.step is None else command.step

    def gave_up(self, job: TrainingJob) -> None:
        """It crashed too often."""
        job.step = job.reached if job.reached >= 0 else job.step

    def lost(self, job: TrainingJob, role: RoleKey, reason: Loss) -> None:
        """Those who are left go on, if they have all that was ever shown. If not, what was computed since the last checkpoint
        is computed again, with the same bits."""
        job.completed = tuple(done for done in job.completed if done != role)
        _forget_pairs(job, role)
        job.busy = tuple(each for each in job.busy if each != role)
        if not _goes_on_without(job):
            _end_all(job, reason)
        else:
            is_assigned = job.assignment is not None and (role.role, role.index) in _members(job.assignment)
            job.state, job.reason = RECOVERING if is_assigned else job.state, reason

    def finished(self, job: TrainingJob, command: Finish) -> None:
        """It is over."""
        job.step = command.step if command.step is not None else job.step

    def apply(self, job: TrainingJob, command: KindCommand) -> bool:
        """Did ``command``, which is one of a training alone, change anything?"""
        match command:
            case Reassign():
                return _reassign(job, command)
            case ReadyRole():
                return _ready(job, command)
            case SyncReplica():
                return _sync(job, command)
            case ReportPair():
                return _pair(job, command)
            case MarkBusy():
                return _mark_busy(job, command)
            case CompleteRole():
                return _complete(job, command)
            case KeepPart():
                return _keep(job, command)
            case SetCheckpointHolders():
                return _set_checkpoint_holders(job, command)
            case _:
                return False


def _reassign(job: TrainingJob, command: Reassign) -> bool:
    """Everybody in the assignment lives and is bound; primaries are among those in sync."""
    if not job.goes_on or not job.runs or job.assignment is None or command.generation != job.generation + 1:
        return False
    bound = {(record.endpoint.key.role, record.endpoint.key.index) for record in job.endpoints}
    if not _is_assignment(command.assignment):
        return False
    if not _members(command.assignment) <= bound or len(command.assignment.shards) != len(job.assignment.shards):
        return False
    for shard, (old, new) in enumerate(zip(job.assignment.shards, command.assignment.shards, strict=True)):
        caught_up = {server for synced, server in job.synced if synced == shard}
        if not set(new.in_sync) <= {*old.in_sync, *caught_up}:
            return False
    if {(role.role, role.index) for role in command.dismissed} & _members(command.assignment):
        return False
    job.placements = tuple(placement for placement in job.placements if placement.role not in command.dismissed)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key not in command.dismissed)
    job.generation, job.assignment, job.synced, job.pairs = command.generation, command.assignment, (), ()
    job.state, job.reason = RUNNING, None if command.is_full else job.reason
    return True


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


def _ready(job: TrainingJob, command: ReadyRole) -> bool:
    if not job.wants(command.role) or command.role in job.ready:
        return False
    job.ready = (*job.ready, command.role)
    return True


def _sync(job: TrainingJob, command: SyncReplica) -> bool:
    """Only what is said in the generation in force counts: a primary says it again in each one."""
    if not job.is_in_force(command.generation) or job.assignment is None or command.generation != job.generation:
        return False
    if not 0 <= command.shard < len(job.assignment.shards):
        return False
    if command.server not in job.assignment.shards[command.shard].filling:
        return False
    job.synced = tuple(sorted({*job.synced, (command.shard, command.server)}))
    return True


def _pair(job: TrainingJob, command: ReportPair) -> bool:
    if not job.wants(command.role) or command.generation != job.generation:
        return False
    peer = (command.peer, command.index)
    named = [p.role for p in job.placements if (p.role.role, p.role.index) == peer]
    if not named or named[0] == command.role:
        return False
    job.pairs = (*job.pairs, Pair(command.role, named[0], command.silent_ms))
    return True


def _mark_busy(job: TrainingJob, command: MarkBusy) -> bool:
    """What was reported of a busy process is not true any more when it gives signs again; if it is, it is reported again."""
    if not job.wants(command.role) or command.is_busy == (command.role in job.busy):
        return False
    if command.is_busy:
        job.busy = (*job.busy, command.role)
        return True
    job.busy = tuple(role for role in job.busy if role != command.role)
    _forget_pairs(job, command.role)
    return True


def _forget_pairs(job: TrainingJob, role: RoleKey) -> None:
    job.pairs = tuple(pair for pair in job.pairs if role not in {pair.role, pair.peer})


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
    job.endpoints, job.completed, job.ready, job.synced, job.pairs, job.busy = (), (), (), (), (), ()
    job.runs = False
    job.parts, job.final_parts = {}, {}


def _set_checkpoint_holders(job: TrainingJob, command: SetCheckpointHolders) -> bool:
    if not job.is_in_force(command.generation) or job.assignment is None:
        return False
    if len(command.checkpoint_holders) not in {0, len(job.assignment.shards)}:
        return False
    job.checkpoint_holders, job.holder_changes = command.checkpoint_holders, job.holder_changes + 1
    for step in sorted(job.parts):
        _judge(job, step, is_final=False)
    for step in job.final_parts:
        _judge(job, step, is_final=True)
    return True


def _complete(job: TrainingJob, command: CompleteRole) -> bool:
    if not job.wants(command.role) or command.role in job.completed:
        return False
    job.completed = (*job.completed, command.role)
    if command.step is not None:
        job.step, job.loss = command.step, command.loss
    return True


def _keep(job: TrainingJob, command: KeepPart) -> bool:
    """A checkpoint is whole, or absent: it counts once every part is on as many disks as the placement wants."""
    if not job.is_in_force(command.generation):
        return False
    if job.checkpoint is not None and (command.step < job.checkpoint.step or job.final):
        return False
    part, primaries = command.part, job.primaries()
    if not 0 <= part.shard < len(primaries):
        return False
    told = job.final_parts if command.final else job.parts
    shards = {known.shard: known for known in told.get(command.step, ())}
    known = shards.get(part.shard)
    nodes = known.nodes if known is not None and known.blob == part.blob else ()
    is_holder = bool(nodes) and part.node in job.checkpoint_holders[part.shard : part.shard + 1]
    if part.node != primaries[part.shard] and not is_holder:
        return False
    nodes = tuple(dict.fromkeys((*nodes, part.node)))
    shards[part.shard] = KeptPart(part.shard, part.blob, part.size_bytes, nodes)
    told[command.step] = tuple(shards[shard] for shard in sorted(shards))
    while len(job.parts) > limits.PARTIAL_CHECKPOINTS:
        del job.parts[min(job.parts)]
    _judge(job, command.step, is_final=command.final)
    return True


def _judge(job: TrainingJob, step: int, *, is_final: bool) -> None:
    """Is the checkpoint of ``step`` whole now?"""
    parts = (job.final_parts if is_final else job.parts).get(step, ())
    copies = 2 if job.checkpoint_holders else 1
    shards = 0 if job.assignment is None else len(job.assignment.shards)
    if len(parts) == shards and all(len(part.nodes) >= copies for part in parts):
        job.checkpoint, job.final = Checkpoint(step, parts), is_final
        job.copies = {blob: node for blob, node in job.copies.items() if blob in job.blobs()}
        job.parts = {later: found for later, found in job.parts.items() if later > step}
