"""What each command does to the state: total (any command, in any state) and deterministic.

A command of a placement that is not in force any more does nothing.
"""

from dmi_protocol import limits
from dmi_protocol.address import is_address
from dmi_protocol.cluster.command import (
    Admit,
    Cancel,
    Command,
    CompleteRole,
    Finish,
    Invite,
    JobCommand,
    KeepPart,
    LoseRole,
    Place,
    Readdress,
    Rekeep,
    Remove,
    SeatRole,
    Submit,
)
from dmi_protocol.cluster.state import (
    CANCELLED,
    ENDED,
    FAILED,
    QUEUED,
    RECOVERING,
    RUNNING,
    STARTING,
    Checkpoint,
    ClusterState,
    Job,
    KeptPart,
    MemberRecord,
    Outcome,
    SeatRecord,
)
from dmi_protocol.identity import JobId, is_public_key, job_id, node_id
from dmi_protocol.messages.roles import RoleKey, Seat
from dmi_protocol.reasons import (
    Cancelled,
    CrashedOften,
    InvitationExpired,
    InvitationUsed,
    JobEnded,
    LimitReached,
    Malformed,
    NameTaken,
    RoleDied,
    RoleFailed,
    Stale,
    UnknownJob,
    UnknownMember,
)

_STALE = Outcome(refusal=Stale())
_DONE = Outcome()


def apply(state: ClusterState, index: int, command: Command) -> Outcome:
    """Change ``state`` as the entry at ``index`` says. A request that was applied before gives its old outcome."""
    state.applied = index
    known = state.requests.get(command.request)
    if known is not None:
        return known
    outcome = _do(state, index, command)
    state.requests[command.request] = outcome
    while len(state.requests) > limits.REQUESTS_REMEMBERED:
        del state.requests[next(iter(state.requests))]
    return outcome


def _do(state: ClusterState, index: int, command: Command) -> Outcome:
    match command:
        case Invite():
            return _invite(state, command)
        case Admit():
            return _admit(state, command)
        case Remove():
            return _remove(state, command)
        case Readdress():
            return _readdress(state, command)
        case _:
            return _do_for_job(state, index, command)


def _do_for_job(state: ClusterState, index: int, command: JobCommand) -> Outcome:
    match command:
        case Submit():
            return _submit(state, index, command)
        case Cancel():
            return _cancel(state, command)
        case Place():
            return _place(state, command)
        case LoseRole():
            return _lose(state, command)
        case Rekeep():
            return _rekeep(state, command)
        case SeatRole():
            return _seat(state, command)
        case CompleteRole():
            return _complete(state, command)
        case KeepPart():
            return _keep(state, command)
        case Finish():
            return _finish(state, command) if command.state in ENDED else _STALE


# Members


def _invite(state: ClusterState, command: Invite) -> Outcome:
    if len(state.invitations) >= limits.INVITATIONS:
        oldest = min(state.invitations, key=lambda key: (state.invitations[key], key))
        del state.invitations[oldest]
    state.invitations[command.key] = command.expires_unix
    return _DONE


def _admit(state: ClusterState, command: Admit) -> Outcome:
    expires = state.invitations.get(command.invitation)
    if expires is None:
        return Outcome(refusal=InvitationUsed())
    if command.at_unix > expires:
        del state.invitations[command.invitation]
        return Outcome(refusal=InvitationExpired())
    if not is_public_key(command.public_key):
        return Outcome(refusal=Malformed("public key", command.public_key))
    if not is_address(command.address):
        return Outcome(refusal=Malformed("address HOST:PORT", command.address))
    if not command.name.isprintable() or not command.name:
        return Outcome(refusal=Malformed("name", command.name))
    node = node_id(command.public_key)
    if any(member.name == command.name for member in state.members.values() if member.node != node):
        return Outcome(refusal=NameTaken(command.name))
    if len(command.name) > limits.NAME_CHARACTERS:
        return Outcome(refusal=LimitReached("characters in a name", limits.NAME_CHARACTERS))
    if len(state.members) >= limits.MEMBERS:
        return Outcome(refusal=LimitReached("members", limits.MEMBERS))
    del state.invitations[command.invitation]
    state.members[node] = MemberRecord(node, command.name, command.address, command.public_key, command.witness)
    return Outcome(node)


def _remove(state: ClusterState, command: Remove) -> Outcome:
    if state.members.pop(command.node, None) is None:
        return Outcome(refusal=UnknownMember(command.node))
    return _DONE


def _readdress(state: ClusterState, command: Readdress) -> Outcome:
    old = state.members.get(command.node)
    if old is None:
        return Outcome(refusal=UnknownMember(command.node))
    if not is_address(command.address):
        return Outcome(refusal=Malformed("address HOST:PORT", command.address))
    state.members[old.node] = MemberRecord(old.node, old.name, command.address, old.public_key, old.witness)
    return _DONE


# Jobs


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
    state.jobs[job] = Job(job, command.spec, command.bundle, command.holders, index)
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
    if command.generation != job.generation + 1 or not command.workers:
        return _STALE
    if command.restore != (None if job.checkpoint is None else job.checkpoint.step):
        return _STALE
    job.generation, job.restore = command.generation, command.restore
    job.workers, job.servers, job.keepers = command.workers, command.servers, command.keepers
    if job.state == QUEUED:
        job.state = STARTING
    return _DONE  # a node that was removed meanwhile is lost like any other: the job is placed again


def _in_force(state: ClusterState, job: JobId, generation: int) -> Job | None:
    """The job, when it goes on and this generation is its placement."""
    found = state.jobs.get(job)
    return found if found is not None and found.goes_on and found.generation == generation else None


def _lose(state: ClusterState, command: LoseRole) -> Outcome:
    """The placement ends; what it has computed since the last checkpoint is computed again, with the same bits."""
    job = _in_force(state, command.role.job, command.role.generation)
    if job is None or command.role not in dict(job.roles()):
        return _STALE
    if isinstance(command.reason, RoleDied | RoleFailed):
        step = -1 if command.step is None else command.step
        job.reached, job.crashes = (job.reached, job.crashes + 1) if step <= job.reached else (step, 1)
    if job.crashes >= limits.CRASHES:
        job.state, job.reason = FAILED, CrashedOften(job.crashes, command.reason)
        job.step = job.reached if job.reached >= 0 else job.step
        return _DONE
    job.state, job.reason = (RECOVERING, command.reason) if job.has_run else (QUEUED, None)
    job.workers = job.servers = job.keepers = ()
    job.seats, job.completed = (), ()
    job.parts, job.final_parts = {}, {}
    return _DONE


def _rekeep(state: ClusterState, command: Rekeep) -> Outcome:
    job = _in_force(state, command.job, command.generation)
    if job is None or len(command.keepers) not in {0, len(job.servers)}:
        return _STALE
    job.keepers, job.rekept = command.keepers, job.rekept + 1
    for step in sorted(job.parts):
        _judge(job, step, is_final=False)
    for step in job.final_parts:
        _judge(job, step, is_final=True)
    return _DONE


def _seat(state: ClusterState, command: SeatRole) -> Outcome:
    role: RoleKey = command.role
    job = _in_force(state, role.job, role.generation)
    node = dict(job.roles()).get(role) if job is not None else None
    member = state.members.get(node) if node is not None else None
    if job is None or member is None or any(record.seat.key == role for record in job.seats):
        return _STALE
    if not is_address(command.address) or not is_public_key(command.public_key):
        return _STALE
    seat = Seat(role, member.node, member.name, command.address, command.public_key)
    job.seats = (*job.seats, SeatRecord(seat, command.pid))
    if len(job.seats) == len(job.roles()):
        job.state, job.reason, job.has_run = RUNNING, None, True
    return _DONE


def _complete(state: ClusterState, command: CompleteRole) -> Outcome:
    job = _in_force(state, command.role.job, command.role.generation)
    if job is None or command.role in job.completed or command.role not in dict(job.roles()):
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
    part = command.part
    if not 0 <= part.shard < len(job.servers):
        return _STALE
    told = job.final_parts if command.final else job.parts
    shards = {known.shard: known for known in told.get(command.step, ())}
    known = shards.get(part.shard)
    nodes = known.nodes if known is not None and known.blob == part.blob else ()
    if part.node != job.servers[part.shard] and (
        not nodes or part.node not in job.keepers[part.shard : part.shard + 1]
    ):
        return _STALE
    nodes = tuple(dict.fromkeys((*nodes, part.node)))
    shards[part.shard] = KeptPart(part.shard, part.blob, part.size_bytes, nodes)
    told[command.step] = tuple(shards[shard] for shard in sorted(shards))
    while len(job.parts) > limits.PARTIAL_CHECKPOINTS:
        del job.parts[min(job.parts)]
    _judge(job, command.step, is_final=command.final)
    return _DONE


def _judge(job: Job, step: int, *, is_final: bool) -> None:
    """Is the checkpoint of ``step`` whole now?"""
    parts = (job.final_parts if is_final else job.parts).get(step, ())
    copies = 2 if job.keepers else 1
    if len(parts) == len(job.servers) and all(len(part.nodes) >= copies for part in parts):
        job.checkpoint, job.final = Checkpoint(step, parts), is_final
        job.parts = {later: found for later, found in job.parts.items() if later > step}


def _finish(state: ClusterState, command: Finish) -> Outcome:
    job = _in_force(state, command.job, command.generation)
    if job is None:
        return _STALE
    job.state, job.reason = command.state, command.reason
    job.step = command.step if command.step is not None else job.step
    return _DONE
