"""What this node must run for the jobs in the replicated state, and what its role processes have to tell.

Level-triggered: it compares what the state wants with what is here, as often as either changes.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from msgspec import Struct, field

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    Command,
    CompleteRole,
    Finish,
    KeepPart,
    LoseRole,
    Part,
    ReadyRole,
    ReportPair,
    SeatRole,
    SyncReplica,
)
from dmi_protocol.cluster.state import FAILED, RUNNING, ClusterState, Job, KeptPart
from dmi_protocol.effects import DropBlob, Effect, FetchBlob, StartRole, StopRole, TellRole
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.roles import (
    Assignment,
    Bound,
    CaughtUp,
    Completed,
    Exited,
    Failed,
    Lease,
    PartWritten,
    Progressed,
    Ready,
    RoleEvent,
    RoleKey,
    Roster,
    Unheard,
)
from dmi_protocol.reasons import BundleLost, Loss, NodeLost, PartLost, Reason, RoleDied, RoleFailed

GRACE_MS = 3_000
RECOVERABLE = frozenset({"peer-silent", "peer-broken", "declined", "no-roster", "server", "disk"})
"""Kinds of failures that lie in a process or between two of them: others may do the same work."""


class _Local(Struct):
    """A role process of this host, wanted or still ending."""

    bundle: BlobHash
    parts: dict[BlobHash, tuple[NodeId, ...]]
    """Of the checkpoint that it goes on from, and who has them."""
    awaited: set[BlobHash]
    """What must be on this host's disk before it can start."""
    has_run: bool
    """Did the job run before? Then its files are somewhere, and it waits for them."""
    is_recruit: bool
    """Others train already, and can go on without it."""
    is_started: bool = False
    told: int = 0
    """The generation that it was told of last."""
    leased: Instant = Instant(0)
    """Until when it may show new versions."""
    is_stopping: bool = False
    is_gone: bool = False
    written: set[BlobHash] = field(default_factory=set)
    """Parts that it has written, and that the state does not say to be here yet."""
    has_spoken: bool = False
    """It has said how it ended: completed, or failed."""
    public_key: PublicKey | None = None
    """Of its data socket, once it is bound."""
    progress: Progressed | None = None


def role_name(role: RoleKey) -> str:
    """What people call a role process: ``worker-0``."""
    return f"{role.role}-{role.index}"


class _Copy(Struct, frozen=True):
    """A part of a checkpoint that this host is to keep a copy of."""

    job: JobId
    generation: int
    step: int
    part: KeptPart
    final: bool

    @property
    def key(self) -> "_CopyKey":
        return self.job, self.generation, self.step, self.part.shard, self.final


_CopyKey = tuple[JobId, int, int, int, bool]


class Hosting:
    """See the module. ``ports`` is the range that data sockets may be bound in, ``host`` the address to bind; ``reached``
    gives the last step of a job that was heard of."""

    def __init__(
        self, me: NodeId, name: str, host: str, ports: tuple[int, int], reached: Callable[[JobId], int | None]
    ) -> None:
        self._me = me
        self._name = name
        self._host = host
        self._ports = ports
        self._reached = reached
        self._local: dict[RoleKey, _Local] = {}
        self._copies: dict[_CopyKey, _Copy] = {}
        """Under way to this host. The last checkpoint of a job and its final one may be the same bytes."""
        self._parts: frozenset[BlobHash] = frozenset()
        """Of checkpoints, on this host's disk or under way to it."""
        self._under_way: Counter[BlobHash] = Counter()
        """Fetches whose end was not heard of yet."""

    def progress(self, job: JobId) -> Progressed | None:
        """The last progress that a worker of ``job`` told here."""
        return next((local.progress for key, local in self._local.items() if key.job == job and local.progress), None)

    def reconcile(self, state: ClusterState) -> tuple[list[Effect], list[Command]]:
        """Make what is here what ``state`` wants; gives effects, and facts that the others must learn."""
        effects: list[Effect] = []
        facts: list[Command] = []
        wanted = {
            role: job for job in state.jobs.values() if job.goes_on for role, node in job.roles() if node == self._me
        }
        for role, local in list(self._local.items()):
            if local.is_gone and role not in wanted:
                del self._local[role]
            elif role not in wanted and not local.is_stopping:
                local.is_stopping = True
                if local.is_started:
                    effects.append(StopRole(role, GRACE_MS))
                else:
                    del self._local[role]
        for role, job in wanted.items():
            effects += self._want(role, job, facts, state)
        return [*effects, *self._copy(state)], facts

    def _want(self, role: RoleKey, job: Job, facts: list[Command], state: ClusterState) -> list[Effect]:
        local = self._local.get(role)
        seat = next((record.seat for record in job.seats if record.seat.key == role), None)
        if seat is not None and (local is None or local.public_key != seat.public_key):
            # The seat is that of a process from before this daemon was restarted. The news of it may come late, when a
            # process was started again here already: nobody will ever speak with that one.
            if not _is_safe(role, job):
                facts.append(self._lost(role, NodeLost(role_name(role), self._name)))
            return []
        if local is None:
            parts = {part.blob: part.nodes for part in _parts_for(role, job)}
            self._local[role] = _Local(
                job.bundle, parts, {job.bundle, *parts}, job.has_run, is_recruit=role.generation != job.life
            )
            sources = {job.bundle: job.holders} | parts
            return [self._fetch(blob, sources[blob], state) for blob in (job.bundle, *parts)]
        if job.state == RUNNING and local.is_started and local.told < job.generation:
            told = roster(job)
            if any(seat.key == role for seat in (*told.servers, *told.workers)):
                local.told = job.generation
                return [TellRole(role, told)]
        return []

    def leases(self, contact: Instant | None) -> list[Effect]:
        """Every server here may show new versions for a while after its node was in ``contact`` with a quorum."""
        until = None if contact is None else after(contact, limits.LEASE_MS)
        effects: list[Effect] = []
        for role, local in self._local.items():
            is_served = role.role == "server" and local.told and not local.is_stopping and not local.is_gone
            if is_served and until is not None and until >= local.leased + limits.LEASE_RENEWED_MS:
                local.leased = until
                effects.append(TellRole(role, Lease(until)))
        return effects

    def renewal(self) -> Instant | None:
        """When leases must be renewed by a node that is a quorum by itself, and hears from nobody."""
        leased = [local.leased for local in self._local.values() if local.leased and not local.is_gone]
        return Instant(min(leased) - limits.LEASE_MS // 2) if leased else None

    def _fetch(self, blob: BlobHash, nodes: tuple[NodeId, ...], state: ClusterState) -> FetchBlob:
        self._under_way[blob] += 1
        return FetchBlob(blob, tuple(node for node in nodes if node != self._me and node in state.members))

    def _lost(self, role: RoleKey, reason: Loss) -> LoseRole:
        return LoseRole(_request(role, "lost"), role, reason, self._reached(role.job))

    def _failed(self, role: RoleKey, reason: Reason) -> Finish:
        return Finish(_request(role, "failed"), role.job, role.generation, FAILED, reason, self._reached(role.job))

    # Parts of checkpoints

    def _copy(self, state: ClusterState) -> list[Effect]:
        """Parts that this host is to keep a copy of, and has not."""
        due = {copy.key: copy for job in state.jobs.values() if job.goes_on for copy in self._due(job)}
        new = sorted(due.keys() - self._copies.keys())
        self._copies = due
        return [self._fetch(due[key].part.blob, due[key].part.nodes, state) for key in new]

    def _due(self, job: Job) -> Iterator[_Copy]:
        for told, is_final in ((job.parts, False), (job.final_parts, True)):
            for step, parts in told.items():
                for part in parts:
                    if self._me in job.keepers[part.shard : part.shard + 1] and self._me not in part.nodes:
                        yield _Copy(job.id, job.life, step, part, is_final)

    def drop_parts(self, state: ClusterState) -> list[Effect]:
        """Parts of checkpoints that are here and that nothing speaks of any more.

        What somebody else is said to have now may have been promised here a moment ago, so all that the state speaks of
        stays; and so does what is on its way, lest it be told to be here when it was dropped meanwhile.
        """
        told = [
            part
            for job in state.jobs.values()
            for parts in (
                *job.parts.values(),
                *job.final_parts.values(),
                job.checkpoint.parts if job.checkpoint is not None else (),
            )
            for part in parts
        ]
        needed = {blob for local in self._local.values() if not local.is_gone for blob in local.parts}
        needed |= {copy.part.blob for copy in self._copies.values()}
        for local in self._local.values():
            local.written -= {part.blob for part in told if self._me in part.nodes}
            needed |= local.written
        held = self._parts | needed | {part.blob for part in told if self._me in part.nodes}
        kept = held & (needed | {part.blob for part in told} | self._under_way.keys())
        self._parts = frozenset(kept)
        return [DropBlob(blob) for blob in sorted(held - kept)]

    def _heard_of(self, blob: BlobHash) -> None:
        self._under_way[blob] -= 1
        if self._under_way[blob] <= 0:
            del self._under_way[blob]

    def arrived(self, state: ClusterState, blob: BlobHash) -> tuple[list[Effect], list[Command]]:
        """A blob is here: start what waited for it, tell that a copy is kept."""
        effects: list[Effect] = []
        self._heard_of(blob)
        for role, local in self._local.items():
            local.awaited.discard(blob)
            job = state.jobs.get(role.job)
            if not local.awaited and not local.is_started and not local.is_stopping and job is not None:
                local.is_started = True
                effects.append(StartRole(role, self._assignment(role, job, tuple(local.parts))))
        return effects, [self._kept(copy) for copy in self._copies.values() if copy.part.blob == blob]

    def _kept(self, copy: _Copy) -> KeepPart:
        part = Part(copy.part.shard, copy.part.blob, copy.part.size_bytes, self._me)
        kind = "final" if copy.final else "kept"
        request = RequestId(f"{copy.job}/{copy.generation}/copy-{part.shard}-{copy.step}-{kind}-{self._me}")
        return KeepPart(request, copy.job, copy.generation, copy.step, part, copy.final)

    def _assignment(self, role: RoleKey, job: Job, parts: tuple[BlobHash, ...]) -> Assignment:
        """Paths are the shell's to fill in."""
        spec = job.spec
        return Assignment(
            key=role,
            node=self._me,
            node_name=self._name,
            script=spec.script,
            args=spec.args,
            bundle_hash=job.bundle,
            bundle="",
            directory="",
            leaves=spec.leaves,
            threads=spec.threads,
            workers=len(job.cast.workers) if job.cast is not None else 0,
            shards=len(job.primaries()),
            host=self._host,
            ports=self._ports,
            part_hashes=parts,
        )

    def missing(self, blob: BlobHash, detail: str) -> list[Command]:
        """A blob cannot be had. Whoever has it may be away, so a job that has run is placed again until it can be."""
        self._heard_of(blob)
        self._copies = {key: copy for key, copy in self._copies.items() if copy.part.blob != blob}
        facts: list[Command] = []
        for role, local in self._local.items():
            if blob in local.awaited and blob != local.bundle:
                facts.append(self._lost(role, PartLost(self._name, detail)))
            elif blob in local.awaited:
                lost = BundleLost(self._name, detail)
                facts.append(self._lost(role, lost) if local.has_run else self._failed(role, lost))
        return facts

    def happened(self, role: RoleKey, event: RoleEvent) -> list[Command]:
        """A role process said something, or ended."""
        local = self._local.get(role)
        if local is None:
            return []
        match event:
            case Bound(address, public_key, pid):
                local.public_key = public_key
                return [SeatRole(_request(role, "seat"), role, address, public_key, pid)]
            case Progressed():
                local.progress = event
            case PartWritten():
                local.written.add(event.blob)
                part = Part(event.shard, event.blob, event.size_bytes, self._me)
                request = _request(role, f"part-{event.shard}-{event.step}-{'final' if event.final else 'kept'}")
                return [KeepPart(request, role.job, role.generation, event.step, part, event.final)]
            case Completed():
                local.has_spoken = True
                told = local.progress
                step, loss = (None, None) if told is None else (told.step, told.loss)
                return [CompleteRole(_request(role, "complete"), role, step, loss)]
            case Ready() if role.role == "worker":
                return [ReadyRole(_request(role, "ready"), role)]
            case CaughtUp(generation, shard, server) if role.role == "server":
                request = _request(role, f"filled-{generation}-{shard}-{server}")
                return [SyncReplica(request, role.job, generation, shard, server)]
            case Unheard(generation, peer, index, silent_ms):
                request = _request(role, f"unheard-{generation}-{peer}-{index}")
                return [ReportPair(request, role, generation, peer, index, silent_ms)]
            case Failed() | Exited():
                return self._ended(role, local, event)
            case _:
                pass
        return []

    def _ended(self, role: RoleKey, local: _Local, event: Failed | Exited) -> list[Command]:
        """What lies in the job itself is final; what lies in a process is made good elsewhere."""
        has_spoken, local.has_spoken = local.has_spoken, True
        local.is_gone = isinstance(event, Exited)
        if has_spoken or local.is_stopping:
            return []
        if isinstance(event, Exited):
            return [self._lost(role, RoleDied(role_name(role), self._name, event.code, event.signal, event.stalled))]
        reason = RoleFailed(role_name(role), self._name, event.kind, event.text)
        is_made_good = event.kind in RECOVERABLE or local.is_recruit
        return [self._lost(role, reason) if is_made_good else self._failed(role, reason)]

    def stop(self) -> list[Effect]:
        """The daemon ends. That its role processes do, too, is no crash of theirs: the others see that the node has left."""
        for local in self._local.values():
            local.is_stopping = True
        return [
            StopRole(role, GRACE_MS) for role, local in self._local.items() if local.is_started and not local.is_gone
        ]


def _is_safe(role: RoleKey, job: Job) -> bool:
    """Is the work of this role done and kept, whatever became of its process?"""
    kept = {part.shard for found in job.final_parts.values() for part in found}
    is_kept = role.role == "worker" or set(job.shards_of(role.index)) <= kept
    return is_kept and job.is_done(role)


def _parts_for(role: RoleKey, job: Job) -> tuple[KeptPart, ...]:
    """The parts of the checkpoint that a primary begins from: with as many shards as before each has its own."""
    if role.role != "server" or role.generation != job.life or job.restore is None or job.checkpoint is None:
        return ()
    mine, parts = job.shards_of(role.index), job.checkpoint.parts
    if len(parts) == len(job.primaries()):
        return tuple(part for part in parts if part.shard in mine)
    return parts if mine else ()


def _request(role: RoleKey, what: str) -> RequestId:
    return RequestId(f"{role.job}/{role.generation}/{role_name(role)}/{what}")


def roster(job: Job) -> Roster:
    """Who takes part in the generation in force."""
    assert job.cast is not None
    servers = {index for shard in job.cast.shards for index in (*shard.in_sync, *shard.filling)}
    wanted = {"server": servers, "worker": set(job.cast.workers)}
    seats = sorted((record.seat for record in job.seats), key=lambda seat: seat.key)
    cast = [seat for seat in seats if seat.key.index in wanted[seat.key.role]]
    return Roster(
        generation=job.generation,
        life=job.life,
        servers=tuple(seat for seat in cast if seat.key.role == "server"),
        workers=tuple(seat for seat in cast if seat.key.role == "worker"),
        cast=job.cast,
        restore=job.restore,
    )
