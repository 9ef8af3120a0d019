"""What this node must run for the jobs in the replicated state, and what its role processes have to tell.

Level-triggered: it compares what the state wants with what is here, as often as either changes.
"""

from msgspec import Struct

from dmi_protocol.cluster.command import Command, CompleteRole, Finish, KeepPart, Part, SeatRole
from dmi_protocol.cluster.state import FAILED, RUNNING, STARTING, ClusterState, Job
from dmi_protocol.effects import DropBlob, Effect, FetchBlob, StartRole, StopRole, TellRole
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.messages.roles import (
    Assignment,
    Bound,
    Completed,
    Exited,
    Failed,
    PartWritten,
    Progressed,
    RoleEvent,
    RoleKey,
    Roster,
    Started,
)
from dmi_protocol.reasons import BundleLost, NodeLost, Reason, RoleDied, RoleFailed

GRACE_MS = 3_000


class _Local(Struct):
    """A role process of this host, wanted or still ending."""

    bundle: BlobHash
    is_started: bool = False
    is_told: bool = False
    is_stopping: bool = False
    is_gone: bool = False
    has_spoken: bool = False
    """It has said how it ended: completed, or failed."""
    public_key: PublicKey | None = None
    """Of its data socket, once it is bound."""
    progress: Progressed | None = None


def role_name(role: RoleKey) -> str:
    """What people call a role process: ``worker-0``."""
    return f"{role.role}-{role.index}"


class Hosting:
    """See the module. ``ports`` is the range that data sockets may be bound in, ``host`` the address to bind."""

    def __init__(self, me: NodeId, name: str, host: str, ports: tuple[int, int]) -> None:
        self._me = me
        self._name = name
        self._host = host
        self._ports = ports
        self._local: dict[RoleKey, _Local] = {}
        self._parts: frozenset[BlobHash] = frozenset()
        """Of checkpoints, on this host's disk."""

    def progress(self, job: JobId) -> Progressed | None:
        """The last progress that a worker of ``job`` told here."""
        return next((local.progress for key, local in self._local.items() if key.job == job and local.progress), None)

    def reconcile(self, state: ClusterState) -> tuple[list[Effect], list[Command]]:
        """Make what is here what ``state`` wants; gives effects, and facts that the others must learn."""
        effects: list[Effect] = []
        facts: list[Command] = []
        wanted = {
            role: job
            for job in state.jobs.values()
            if job.state in {STARTING, RUNNING}
            for role, node in job.roles()
            if node == self._me
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
        return effects, facts

    def _want(self, role: RoleKey, job: Job, facts: list[Command], state: ClusterState) -> list[Effect]:
        local = self._local.get(role)
        seat = next((record.seat for record in job.seats if record.seat.key == role), None)
        if seat is not None and (local is None or local.public_key != seat.public_key):
            # The seat is that of a process from before this daemon was restarted. The news of it may come late, when a
            # process was started again here already: nobody will ever speak with that one.
            facts.append(self._failed(role, NodeLost(role_name(role), self._name)))
            return []
        if local is None:
            self._local[role] = _Local(job.bundle)
            return [FetchBlob(job.bundle, tuple(n for n in job.holders if n != self._me and n in state.members))]
        if job.state == RUNNING and local.is_started and not local.is_told:
            local.is_told = True
            return [TellRole(role, roster(job))]
        return []

    def _failed(self, role: RoleKey, reason: Reason) -> Finish:
        progress = self.progress(role.job)
        step = None if progress is None else progress.step
        return Finish(_request(role, "failed"), role.job, role.generation, FAILED, reason, step)

    def drop_parts(self, state: ClusterState) -> list[Effect]:
        """Parts of checkpoints of ours that nothing speaks of any more."""
        kept = frozenset(
            part.blob
            for job in state.jobs.values()
            for parts in (
                *job.parts.values(),
                job.final_parts,
                job.checkpoint.parts if job.checkpoint is not None else (),
            )
            for part in parts
            if part.node == self._me
        )
        dropped = sorted(self._parts - kept)
        self._parts = kept
        return [DropBlob(blob) for blob in dropped]

    def arrived(self, state: ClusterState, blob: BlobHash) -> list[Effect]:
        """A bundle is here: start what waited for it."""
        effects: list[Effect] = []
        for role, local in self._local.items():
            job = state.jobs.get(role.job)
            if local.bundle == blob and not local.is_started and job is not None:
                local.is_started = True
                effects.append(StartRole(role, self._assignment(role, job)))
        return effects

    def _assignment(self, role: RoleKey, job: Job) -> Assignment:
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
            workers=len(job.workers),
            shards=len(job.servers),
            host=self._host,
            ports=self._ports,
        )

    def missing(self, blob: BlobHash, detail: str) -> list[Command]:
        """A bundle cannot be had."""
        return [
            self._failed(role, BundleLost(self._name, detail))
            for role, local in self._local.items()
            if local.bundle == blob and not local.is_started
        ]

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
                part = Part(event.shard, event.blob, event.size_bytes, self._me)
                request = _request(role, f"part-{event.step}-{'final' if event.final else 'kept'}")
                return [KeepPart(request, role.job, role.generation, event.step, part, event.final)]
            case Completed():
                local.has_spoken = True
                told = local.progress
                step, loss = (None, None) if told is None else (told.step, told.loss)
                return [CompleteRole(_request(role, "complete"), role, step, loss)]
            case Failed(kind, text):
                local.has_spoken = True
                return [self._failed(role, RoleFailed(role_name(role), self._name, kind, text))]
            case Exited(code, signal, stalled):
                local.is_gone = True
                if not local.has_spoken and not local.is_stopping:
                    reason = RoleDied(role_name(role), self._name, code, signal, stalled)
                    return [self._failed(role, reason)]
            case Started():
                pass
        return []

    def stop(self) -> list[Effect]:
        """The daemon ends."""
        return [
            StopRole(role, GRACE_MS) for role, local in self._local.items() if local.is_started and not local.is_gone
        ]


def _request(role: RoleKey, what: str) -> RequestId:
    return RequestId(f"{role.job}/{role.generation}/{role_name(role)}/{what}")


def roster(job: Job) -> Roster:
    """Who takes part in a job whose seats are all taken."""
    seats = sorted((record.seat for record in job.seats), key=lambda seat: seat.key)
    workers = tuple(seat for seat in seats if seat.key.role == "worker")
    servers = tuple(seat for seat in seats if seat.key.role == "server")
    return Roster(
        generation=job.generation,
        servers=servers,
        workers=workers,
        shards=tuple(range(len(servers))),
        speeds=(1.0,) * len(workers),
        lead=0,
    )
