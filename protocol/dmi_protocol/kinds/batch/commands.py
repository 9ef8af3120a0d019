"""What the commands of a batch inference do to it: total, and deterministic."""

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    BatchStart,
    BindRole,
    CommitSlice,
    Finish,
    KindCommand,
    LeaseSlices,
    LoseRole,
    Place,
    ReopenSlices,
)
from dmi_protocol.kinds.batch.state import BatchJob, SliceResult
from dmi_protocol.kinds.job import ENDED, QUEUED, RECOVERING, RUNNING, STARTING
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.reasons import Loss, RoleFailed


class BatchCommands:
    """See ``Commands``."""

    most_failures: int | None = limits.FAILURES

    def is_placeable(self, job: BatchJob, command: Place) -> bool:
        """Any number of replicas can begin."""
        return isinstance(command.start, BatchStart) and all(p.role.role == "replica" for p in command.placements)

    def placed(self, job: BatchJob, command: Place) -> None:
        """Leases follow when somebody is bound."""

    def may_recruit(self, job: BatchJob) -> bool:
        """One replica needs no other."""
        return True

    def unlike(self, job: BatchJob, command: BindRole, node: str) -> Loss | None:
        """The first replica says what all are like."""
        before = dict(job.machine)
        for name, value in command.machine if job.machine else ():
            if before.get(name) != value:
                line = f"its {name} is {value}, and that of the first replica {before.get(name)}: results would differ"
                return RoleFailed(command.role.name, node, "machine", line)
        return None

    def bound(self, job: BatchJob, command: BindRole) -> None:
        """A replica begins at once. With the last one that is wanted a loss is made good."""
        job.machine = job.machine or command.machine
        job.state, job.has_run = RUNNING, True
        if len(job.endpoints) == len(job.placements):
            job.reason = None

    def is_safe_without(self, job: BatchJob, role: RoleKey) -> bool:
        """What a replica has done is in the state already; that it is gone is said of each."""
        return False

    def is_of_use(self, job: BatchJob, role: RoleKey) -> bool:
        """Has it committed a slice, or begun with the job?"""
        return role.generation == job.start_generation or role in job.useful

    def reached(self, job: BatchJob, command: LoseRole) -> int:
        """How far the job is: any slice more is progress."""
        return len(job.results)

    def gave_up(self, job: BatchJob) -> None:
        """What was computed is not an answer."""

    def lost(self, job: BatchJob, role: RoleKey, reason: Loss) -> None:
        """Its slices are open again, for whoever is left."""
        job.useful = tuple(other for other in job.useful if other != role)
        job.leases.pop(role.index, None)
        if not job.endpoints and not job.results:
            job.machine = ()
        if not job.placements:
            job.generation, job.leases, job.useful = max(job.generation, job.born), {}, ()
            job.state, job.reason = (RECOVERING, reason) if job.has_run else (QUEUED, None)
        elif not job.endpoints:
            job.state, job.reason = (RECOVERING, reason) if job.has_run else (STARTING, None)
        else:
            job.reason = reason

    def finished(self, job: BatchJob, command: Finish) -> None:
        """It is over."""
        job.leases = {}

    def apply(self, job: BatchJob, command: KindCommand) -> bool:
        """Did ``command``, which is one of a batch inference alone, change anything?"""
        match command:
            case LeaseSlices():
                return _lease(job, command)
            case CommitSlice():
                return _commit(job, command)
            case ReopenSlices():
                return _reopen(job, command)
            case _:
                return False


def _lease(job: BatchJob, command: LeaseSlices) -> bool:
    """Of bound replicas. A slice that was committed meanwhile is left out."""
    bound = {record.endpoint.key for record in job.endpoints}
    indices = {role.index for role in bound}
    named = [replica for replica, _ in command.leases]
    if not job.is_in_force(command.generation) or not (named or command.dismissed):
        return False
    if not set(named) <= indices or len(set(named)) < len(named) or not set(command.dismissed) <= bound:
        return False
    if not all(_are_slices(job, slices) for _, slices in command.leases):
        return False
    for replica, slices in command.leases:
        job.leases[replica] = tuple(slice_ for slice_ in slices if slice_ not in job.results)
    for role in command.dismissed:
        job.leases.pop(role.index, None)
    gone = set(command.dismissed)
    job.useful = tuple(role for role in job.useful if role not in gone)
    job.placements = tuple(placement for placement in job.placements if placement.role not in gone)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key not in gone)
    if not job.endpoints:
        job.state = STARTING if job.placements else QUEUED
        job.generation = job.generation if job.placements else max(job.generation, job.born)
        job.reason = None
    job.decided += 1
    return True


def _are_slices(job: BatchJob, slices: tuple[int, ...]) -> bool:
    are_known = all(0 <= slice_ < job.spec.slices for slice_ in slices)
    return are_known and len(set(slices)) == len(slices) <= limits.LEASES


def _commit(job: BatchJob, command: CommitSlice) -> bool:
    """The first result counts. Who has computed the same bytes has a copy of them; other bytes are refused."""
    if not job.wants(command.role) or not 0 <= command.slice < job.spec.slices or command.size_bytes < 0:
        return False
    if not 0 <= command.failed <= job.inputs_of(command.slice):
        return False
    node = dict(job.roles())[command.role]
    known = job.results.get(command.slice)
    if known is not None:
        is_further = known.blob == command.blob and node not in known.nodes
        job.results[command.slice] = known.also_on(node) if is_further else known
        return is_further
    job.results[command.slice] = SliceResult(command.blob, command.size_bytes, command.failed, (node,))
    for replica, slices in job.leases.items():
        job.leases[replica] = tuple(slice_ for slice_ in slices if slice_ != command.slice)
    if command.role not in job.useful:
        job.useful = (*job.useful, command.role)
    return True


def _reopen(job: BatchJob, command: ReopenSlices) -> bool:
    """Results that only those who are gone had are computed again."""
    if job.state in ENDED or command.generation != job.generation:
        return False
    lost = [s for s in command.slices if s in job.results and set(job.results[s].nodes) <= set(command.gone)]
    for slice_ in lost:
        job.copies.pop(job.results[slice_].blob, None)
        del job.results[slice_]
    job.reopened += bool(lost)
    return bool(lost)
