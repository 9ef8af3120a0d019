"""What this node must run for the jobs in the replicated state, and what its role processes have to tell.

Level-triggered: it compares what the state wants with what is here, as often as either changes.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from dmi_protocol import limits
from dmi_protocol.blame import HOSTING, SetAside, at
from dmi_protocol.cluster.command import BindRole, Command, Finish, LoseRole
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.effects import Effect, StartRole, StopRole, TellRole
from dmi_protocol.identity import BlobHash, JobId, PublicKey
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.jobs.keeping import Keeping
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import FAILED
from dmi_protocol.kinds.kind import Host, Processes, request_of
from dmi_protocol.messages.roles import (
    Access,
    Bound,
    Exited,
    Failed,
    Follower,
    Followers,
    Lease,
    PartWritten,
    Progressed,
    Published,
    RoleEvent,
    RoleKey,
    SliceWritten,
)
from dmi_protocol.reasons import Loss, NodeLost, Reason, RoleDied, RoleFailed, RoleUnready

GRACE_MS = 3_000
GATEWAY_GRACE_MS = limits.STOP_MS + 1_000
"""A gateway ends when the answers that it has begun are taken."""
CANNOT_START_HERE = "cannot-start-here"
"""This host could not prepare, start or watch it, whatever the job is: another one may."""
RECOVERABLE = frozenset(
    {
        "peer-silent",
        "peer-broken",
        "declined",
        "server",
        "disk",
        CANNOT_START_HERE,
        "input",
        "memory",
        "over-memory",
        "compute-died",
        "port",
        "certificate",
    }
)
"""Kinds of failures that lie in a process or between two of them: others may do the same work."""


def not_here(text: str, kind: str = CANNOT_START_HERE) -> tuple[RoleEvent, ...]:
    """What a shell says of a role that it could not prepare, start or watch: there is no process of it, or none any more."""
    return Failed(kind, text[-limits.TRACEBACK_BYTES :], starting=True), Exited(1, 0)


class _Local(Struct):
    """A role process of this host, wanted or still ending."""

    kind: Processes[Any]
    needs: tuple[BlobHash, ...]
    """Blobs beside the job's files that it begins from."""
    awaited: set[BlobHash]
    """What must be on this host's disk before it can start."""
    is_recruit: bool
    """Others train already, and can go on without it."""
    inputs: dict[BlobHash, bool] = field(default_factory=dict)
    """What it must have for what it is to be told, and whether that is here."""
    started_at: Instant | None = None
    """When its process was started; None while something is awaited."""
    told: int = 0
    """What it was told last; see ``Processes.told``."""
    access: Access | None = None
    """Whom it was told last to let in."""
    followers: Followers = Followers(())
    """Who it was told last follows its training by checkpoints."""
    leased: Instant = Instant(0)
    """Until when it may show new versions."""
    is_stopping: bool = False
    is_gone: bool = False
    written: set[BlobHash] = field(default_factory=set)
    """What it has written, and the state does not say to be here yet."""
    has_spoken: bool = False
    """It has said why it failed."""
    public_key: PublicKey | None = None
    """Of its data socket, once it is bound."""
    progress: Progressed | None = None

    def missing(self) -> list[BlobHash]:
        """What it waits for before it can be told more."""
        return [blob for blob, is_here in self.inputs.items() if not is_here]


class Hosting:
    """See the module. ``reached`` gives the last step of a job that was heard of."""

    def __init__(self, host: Host, reached: Callable[[JobId], int | None], set_aside: SetAside | None = None) -> None:
        self._host = host
        self._reached = reached
        self._set_aside = set_aside or SetAside()
        self._local: dict[RoleKey, _Local] = {}
        self._keeping = Keeping(host.node)
        self._due: Instant | None = None
        self._is_new = True
        """Has something happened since ``_due`` was worked out?"""

    def __bool__(self) -> bool:
        """Is any role process here, or was a moment ago?"""
        return bool(self._local)

    def progress(self, job: JobId) -> Progressed | None:
        """The last progress that a worker of ``job`` told here."""
        return next((local.progress for key, local in self._local.items() if key.job == job and local.progress), None)

    def reconcile(self, now: Instant, state: ClusterState) -> tuple[list[Effect], list[Command]]:
        """Make what is here what ``state`` wants; gives effects, and facts that the others must learn."""
        self._is_new = True
        effects: list[Effect] = []
        facts: list[Command] = []
        wanted = {
            role: job
            for job in state.jobs.values()
            if job.goes_on
            for role, node in job.roles()
            if node == self._host.node
        }
        for role, local in list(self._local.items()):
            if local.is_gone and role not in wanted:
                del self._local[role]
            elif role not in wanted and not local.is_stopping:
                local.is_stopping = True
                if local.started_at is not None:
                    effects.append(_stop(role))
                else:
                    del self._local[role]
        for role, job in wanted.items():
            if (why := self._set_aside.of(HOSTING, job.id)) is not None:
                facts += self._given_up(role, job, why)
                continue
            with at(HOSTING, job.id):
                effects += self._want(now, role, job, facts, state)
        return [*effects, *self._keeping.reconcile(state)], facts

    def deadline(self) -> Instant | None:
        """When ``tick`` is wanted: something is fetched again, or a process has not bound its socket in time."""
        if self._is_new:
            self._is_new = False
            self._due = earliest(self._keeping.deadline(), *[_unready_at(local) for local in self._local.values()])
        return self._due

    def tick(self, now: Instant, state: ClusterState) -> tuple[list[Effect], list[Command]]:
        """What is due."""
        self._is_new = True
        awaited = {
            blob
            for local in self._local.values()
            if not local.is_stopping
            for blob in (*local.awaited, *local.missing())
        }
        effects = self._keeping.again(now, state, awaited)
        if self._keeping.unpin(now):
            effects += self.drop_kept(state)
        facts: list[Command] = []
        for role, local in self._local.items():
            due = _unready_at(local)
            if due is not None and now >= due:
                local.is_stopping = True
                effects.append(_stop(role))
                facts.append(self._lost(role, RoleUnready(role.name, self._host.name, limits.ROLE_START_MS)))
        return effects, facts

    def _want(
        self, now: Instant, role: RoleKey, job: AnyJob, facts: list[Command], state: ClusterState
    ) -> list[Effect]:
        local = self._local.get(role)
        endpoint = next((record.endpoint for record in job.endpoints if record.endpoint.key == role), None)
        if endpoint is not None and (local is None or local.public_key != endpoint.public_key):
            # The endpoint is that of a process from before this daemon was restarted. The news of it may come late, when a
            # process was started again here already: nobody will ever speak with that one.
            if not kind_of(job).processes.is_safe_without(job, role):
                facts.append(self._lost(role, NodeLost(role.name, self._host.name)))
            return []
        if local is None:
            kind = kind_of(job).processes
            needs, is_recruit = kind.needs(job, role), role.generation != job.start_generation
            local = self._local[role] = _Local(kind, needs, {*job.files(), *needs}, is_recruit=is_recruit)
            if not local.awaited:
                return self._start(now, role, local, job)
            return [self._keeping.fetch(state, blob) for blob in (*job.files(), *needs)]
        if local.started_at is None:
            return []
        followers = _followers(role, state)
        wanted = (*local.kind.inputs(job, role), *_blobs(followers))
        missing = [blob for blob in wanted if blob not in local.inputs]
        local.inputs = {blob: local.inputs.get(blob, False) for blob in wanted}
        fetches = [self._keeping.fetch(state, blob) for blob in missing]
        told = [*_tell(role, local, job), *_let_in(role, local, state), *_tell_followers(role, local, followers)]
        return [*fetches, *told]

    def _given_up(self, role: RoleKey, job: AnyJob, why: str) -> list[Command]:
        """The job has ended this daemon twice, so it is left alone here."""
        if kind_of(job).processes.is_safe_without(job, role):
            return []
        text = f"the job ended the daemon of this host twice, and is set aside there: {why}"
        return [self._lost(role, RoleFailed(role.name, self._host.name, CANNOT_START_HERE, text))]

    def _start(self, now: Instant, role: RoleKey, local: _Local, job: AnyJob) -> list[Effect]:
        local.started_at = now
        return [StartRole(role, local.kind.launch(job, role, self._host, local.needs))]

    def leases(self, contact: Instant | None) -> list[Effect]:
        """Every server here may show new versions for a while after its node was in ``contact`` with a quorum."""
        until = None if contact is None else after(contact, limits.LEASE_MS)
        effects: list[Effect] = []
        for role, local in self._local.items():
            is_served = local.kind.is_leased(role) and local.told and not local.is_stopping and not local.is_gone
            if is_served and until is not None and until >= local.leased + limits.LEASE_RENEWED_MS:
                local.leased = until
                effects.append(TellRole(role, Lease(until)))
        return effects

    def renewal(self) -> Instant | None:
        """When leases must be renewed by a node that is a quorum by itself, and hears from nobody."""
        leased = [local.leased for local in self._local.values() if local.leased and not local.is_gone]
        return Instant(min(leased) - limits.LEASE_MS // 2) if leased else None

    def _lost(self, role: RoleKey, reason: Loss) -> LoseRole:
        return LoseRole(request_of(role, "lost"), role, reason, self._reached(role.job))

    def _failed(self, role: RoleKey, reason: Reason) -> Finish:
        return Finish(request_of(role, "failed"), role.job, role.generation, FAILED, reason, self._reached(role.job))

    # Blobs

    def drop_kept(self, state: ClusterState) -> list[Effect]:
        """What was kept here for jobs and that nothing speaks of any more."""
        living = [local for local in self._local.values() if not local.is_gone]
        needed = {blob for local in living for blob in (*local.needs, *local.inputs)}
        kept = [found for owner in state.holdings() for found in owner.kept()]
        here = {blob for blob, nodes in kept if self._host.node in nodes}
        for local in self._local.values():
            local.written -= here
            needed |= local.written
        return self._keeping.drop({blob for blob, _ in kept}, here, needed)

    def arrived(self, now: Instant, state: ClusterState, blob: BlobHash) -> tuple[list[Effect], list[Command]]:
        """A blob is here: start what waited for it, tell that a copy is kept."""
        self._is_new = True
        effects: list[Effect] = []
        for role, local in self._local.items():
            local.awaited.discard(blob)
            job = state.jobs.get(role.job)
            if job is None or local.is_stopping:
                continue
            with at(HOSTING, role.job):
                if not local.awaited and local.started_at is None:
                    effects += self._start(now, role, local, job)
                elif local.inputs.get(blob) is False:
                    local.inputs[blob] = True
                    effects += _tell(role, local, job)
                    effects += _tell_followers(role, local, _followers(role, state))
        return effects, self._keeping.arrived(blob)

    def pin(self, now: Instant, blob: BlobHash) -> None:
        """A blob is about to be spoken of: it stays here for a while."""
        self._is_new = True
        self._keeping.pin(now, blob)

    def missing(self, now: Instant, blob: BlobHash) -> None:
        """A blob cannot be had now. Whoever has it may be away: it is asked for again."""
        self._is_new = True
        self._keeping.missing(now, blob)

    def happened(self, role: RoleKey, event: RoleEvent) -> list[Command]:
        """A role process said something, or ended."""
        self._is_new = True
        local = self._local.get(role)
        if local is None:
            return []
        match event:
            case Bound(address, public_key, pid, machine):
                local.public_key = public_key
                return [BindRole(request_of(role, "bind"), role, address, public_key, pid, machine)]
            case Progressed():
                local.progress = event
            case Failed() | Exited():
                return self._ended(role, local, event)
            case PartWritten() | SliceWritten():
                local.written.add(event.blob)
            case Published():
                local.written |= {file.blob for file in event.content.files}
            case _:
                pass
        return local.kind.says(role, event, self._host.node, local.progress)

    def _ended(self, role: RoleKey, local: _Local, event: Failed | Exited) -> list[Command]:
        """What lies in the job itself is final; what lies in a process is made good elsewhere."""
        has_spoken, local.has_spoken = local.has_spoken, True
        local.is_gone = isinstance(event, Exited)
        if has_spoken or local.is_stopping:
            return []
        if isinstance(event, Exited):
            return [self._lost(role, RoleDied(role.name, self._host.name, event.code, event.signal, event.stalled))]
        reason = RoleFailed(role.name, self._host.name, event.kind, event.text)
        is_made_good = event.kind in RECOVERABLE or local.is_recruit
        return [self._lost(role, reason) if is_made_good else self._failed(role, reason)]

    def stop(self) -> list[Effect]:
        """The daemon ends. That its role processes do, too, is no crash of theirs: the others see that the node has left."""
        for local in self._local.values():
            local.is_stopping = True
        return [
            _stop(role) for role, local in self._local.items() if local.started_at is not None and not local.is_gone
        ]


def _stop(role: RoleKey) -> StopRole:
    return StopRole(role, GATEWAY_GRACE_MS if role.role == "gateway" else GRACE_MS)


def _tell(role: RoleKey, local: _Local, job: AnyJob) -> list[Effect]:
    """What there is to tell."""
    told = local.kind.told(job, role, local.told, has_inputs=not local.missing())
    if told is None:
        return []
    local.told, message = told
    return [TellRole(role, message)]


def _let_in(role: RoleKey, local: _Local, state: ClusterState) -> list[Effect]:
    """Who may ask a gateway that listens, whenever that is new: until then it lets nobody in."""
    if role.role != "gateway" or local.public_key is None:
        return []
    access = Access(tuple(sorted(token.digest for token in state.tokens.values() if token.scope == "infer")))
    if access == local.access:
        return []
    local.access = access
    return [TellRole(role, access)]


def _followers(role: RoleKey, state: ClusterState) -> Followers:
    """The deployments that follow a worker's training by its checkpoints."""
    if role.role != "worker":
        return Followers(())
    return Followers(
        tuple(
            Follower(job.spec.name, job.spec.every, job.spec.model.content.without_weights)
            for job in state.jobs.values()
            if isinstance(job, DeploymentJob) and job.goes_on and job.spec.follow == role.job and job.spec.every
        )
    )


def _blobs(followers: Followers) -> list[BlobHash]:
    return list(dict.fromkeys(file.blob for follower in followers.followers for file in follower.content.files))


def _tell_followers(role: RoleKey, local: _Local, followers: Followers) -> list[Effect]:
    """Whenever they are others, and what they are made of is here."""
    is_here = all(local.inputs.get(blob) for blob in _blobs(followers))
    if local.public_key is None or not is_here or followers == local.followers:
        return []
    local.followers = followers
    return [TellRole(role, followers)]


def _unready_at(local: _Local) -> Instant | None:
    is_awaited = local.started_at is not None and local.public_key is None
    if local.started_at is None or not is_awaited or local.is_stopping or local.is_gone:
        return None
    return after(local.started_at, limits.ROLE_START_MS)
