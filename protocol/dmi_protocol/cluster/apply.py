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
    KeepPart,
    Place,
    Readdress,
    Remove,
    SeatRole,
    Submit,
)
from dmi_protocol.cluster.state import (
    CANCELLED,
    ENDED,
    QUEUED,
    RUNNING,
    STARTING,
    Checkpoint,
    ClusterState,
    Job,
    MemberRecord,
    Outcome,
    SeatRecord,
)
from dmi_protocol.identity import JobId, is_public_key, job_id, node_id
from dmi_protocol.messages.roles import RoleKey, Seat
from dmi_protocol.reasons import (
    Cancelled,
    InvitationExpired,
    InvitationUsed,
    JobEnded,
    LimitReached,
    Malformed,
    NameTaken,
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
        case Submit():
            return _submit(state, index, command)
        case Cancel():
            return _cancel(state, command)
        case Place():
            return _place(state, command)
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
    is_next = job is not None and job.state in {QUEUED, STARTING} and command.generation == job.generation + 1
    if job is None or not is_next:  # a node that was removed meanwhile is lost like any other: it is placed again
        return _STALE
    job.generation = command.generation
    job.workers, job.servers = command.workers, command.servers
    job.seats, job.completed = (), ()
    job.state = STARTING
    return _DONE


def _in_force(state: ClusterState, job: JobId, generation: int) -> Job | None:
    """The job, when it goes on and this generation is its placement."""
    found = state.jobs.get(job)
    is_in_force = found is not None and found.generation == generation and found.state in {STARTING, RUNNING}
    return found if is_in_force else None


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
        job.state = RUNNING
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
    job = _in_force(state, command.job, command.generation)
    if job is None or (job.checkpoint is not None and (command.step < job.checkpoint.step or job.final)):
        return _STALE
    if not 0 <= command.part.shard < len(job.servers):
        return _STALE
    before = job.final_parts if command.final else job.parts.get(command.step, ())
    shards = {part.shard: part for part in (*before, command.part)}
    parts = tuple(shards[shard] for shard in sorted(shards))
    if command.final:
        job.final_parts = parts
    else:
        job.parts[command.step] = parts
        while len(job.parts) > limits.PARTIAL_CHECKPOINTS:
            del job.parts[min(job.parts)]
    if len(parts) == len(job.servers):
        job.checkpoint, job.final = Checkpoint(command.step, parts), command.final
        job.parts = {step: found for step, found in job.parts.items() if step > command.step}
    return _DONE


def _finish(state: ClusterState, command: Finish) -> Outcome:
    job = state.jobs.get(command.job)
    if job is None or job.state in ENDED or job.generation != command.generation:
        return _STALE
    job.state, job.reason = command.state, command.reason
    job.step = command.step if command.step is not None else job.step
    return _DONE
