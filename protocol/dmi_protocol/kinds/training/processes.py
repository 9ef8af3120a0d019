"""The processes of a training on one node: what they need to begin, what they are told, and what follows from what they say."""

from collections.abc import Iterator

from dmi_protocol.cluster.command import (
    Command,
    CompleteRole,
    KeepPart,
    MarkBusy,
    Part,
    PublishVersion,
    ReadyRole,
    ReportPair,
    SyncReplica,
)
from dmi_protocol.identity import BlobHash, NodeId, RequestId
from dmi_protocol.kinds.job import RUNNING
from dmi_protocol.kinds.kind import Host, request_of
from dmi_protocol.kinds.training.state import KeptPart, TrainingJob
from dmi_protocol.messages.roles import (
    Busy,
    CaughtUp,
    Completed,
    Launch,
    PartWritten,
    Progressed,
    Published,
    Ready,
    RoleEvent,
    RoleKey,
    Roster,
    TrainingLaunch,
    Unheard,
)


class TrainingProcesses:
    """See ``Processes``."""

    def needs(self, job: TrainingJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """The parts of the checkpoint that a primary begins from."""
        return tuple(part.blob for part in _parts_for(role, job))

    def inputs(self, job: TrainingJob, role: RoleKey) -> tuple[BlobHash, ...]:
        """Nothing: what is trained on is the script's to find."""
        return ()

    def launch(self, job: TrainingJob, role: RoleKey, host: Host, needs: tuple[BlobHash, ...]) -> Launch:
        """Paths are the shell's to fill in."""
        spec = job.spec
        return TrainingLaunch(
            key=role,
            node=host.node,
            node_name=host.name,
            script=spec.script,
            args=spec.args,
            bundle_hash=job.bundle,
            bundle="",
            directory="",
            leaves=spec.leaves,
            threads=spec.threads,
            workers=len(job.assignment.workers) if job.assignment is not None else 0,
            shards=len(job.primaries()),
            host=host.address,
            ports=host.ports,
            needs=needs,
            share=job.spec.share,
            env=spec.env if role.role == "worker" else (),
            python=spec.python if role.role == "worker" else None,
        )

    def told(self, job: TrainingJob, role: RoleKey, since: int, *, has_inputs: bool) -> tuple[int, Roster] | None:
        """Once in each generation its roster, if this process has a part in it."""
        if since >= job.generation or job.state != RUNNING:
            return None
        found = roster(job)
        has_part = any(endpoint.key == role for endpoint in (*found.servers, *found.workers))
        return (job.generation, found) if has_part else None

    def keeps(self, job: TrainingJob, node: NodeId) -> Iterator[tuple[BlobHash, Command]]:
        """The second copies of the parts of checkpoints that are not whole yet."""
        for told, is_final in ((job.parts, False), (job.final_parts, True)):
            for step, parts in told.items():
                for part in parts:
                    if node in job.checkpoint_holders[part.shard : part.shard + 1] and node not in part.nodes:
                        yield part.blob, _kept(job, step, part, node, is_final=is_final)

    def is_leased(self, role: RoleKey) -> bool:
        """A server shows new versions only while its node knows of a quorum."""
        return role.role == "server"

    def is_safe_without(self, job: TrainingJob, role: RoleKey) -> bool:
        """Is the work of this role done and kept, whatever became of its process?"""
        kept = {part.shard for found in job.final_parts.values() for part in found}
        is_kept = role.role == "worker" or set(job.shards_of(role.index)) <= kept
        return is_kept and job.is_done(role)

    def says(self, role: RoleKey, event: RoleEvent, node: NodeId, progress: Progressed | None) -> list[Command]:
        """What the others must learn."""
        match event:
            case PartWritten():
                part = Part(event.shard, event.blob, event.size_bytes, node)
                request = request_of(role, f"part-{event.shard}-{event.step}-{'final' if event.final else 'kept'}")
                return [KeepPart(request, role.job, role.generation, event.step, part, event.final)]
            case Completed():
                step, loss = (None, None) if progress is None else (progress.step, progress.loss)
                return [CompleteRole(request_of(role, "complete"), role, step, loss)]
            case Published(name, step, content, _, at_unix) if role.role == "worker":
                return [PublishVersion(request_of(role, f"published-{name}-{step}"), role, name, content, at_unix)]
            case Ready() if role.role == "worker":
                return [ReadyRole(request_of(role, "ready"), role)]
            case CaughtUp(generation, shard, server) if role.role == "server":
                request = request_of(role, f"filled-{generation}-{shard}-{server}")
                return [SyncReplica(request, role.job, generation, shard, server)]
            case Unheard(generation, peer, index, silent_ms, number):
                request = request_of(role, f"unheard-{number}")
                return [ReportPair(request, role, generation, peer, index, silent_ms)]
            case Busy(number, is_over):
                request = request_of(role, f"{'not-' if is_over else ''}busy-{number}")
                return [MarkBusy(request, role, not is_over)]
            case _:
                return []


def _kept(job: TrainingJob, step: int, part: KeptPart, node: NodeId, *, is_final: bool) -> KeepPart:
    """What was told of a part while another was its holder did not count: it is told anew, under another name."""
    kind = "final" if is_final else "kept"
    what = f"copy-{part.shard}-{step}-{kind}-{part.blob[:16]}-{node}-{job.holder_changes}"
    mine = Part(part.shard, part.blob, part.size_bytes, node)
    request = RequestId(f"{job.id}/{job.start_generation}/{what}")
    return KeepPart(request, job.id, job.start_generation, step, mine, is_final)


def _parts_for(role: RoleKey, job: TrainingJob) -> tuple[KeptPart, ...]:
    """The parts of the checkpoint that a primary begins from: with as many shards as before each has its own."""
    if (
        role.role != "server"
        or role.generation != job.start_generation
        or job.restore is None
        or job.checkpoint is None
    ):
        return ()
    mine, parts = job.shards_of(role.index), job.checkpoint.parts
    if len(parts) == len(job.primaries()):
        return tuple(part for part in parts if part.shard in mine)
    return parts if mine else ()


def roster(job: TrainingJob) -> Roster:
    """Who takes part in the generation in force."""
    assert job.assignment is not None
    servers = {index for shard in job.assignment.shards for index in (*shard.in_sync, *shard.filling)}
    wanted = {"server": servers, "worker": set(job.assignment.workers)}
    endpoints = sorted((record.endpoint for record in job.endpoints), key=lambda endpoint: endpoint.key)
    there = [endpoint for endpoint in endpoints if endpoint.key.index in wanted[endpoint.key.role]]
    return Roster(
        generation=job.generation,
        start_generation=job.start_generation,
        servers=tuple(endpoint for endpoint in there if endpoint.key.role == "server"),
        workers=tuple(endpoint for endpoint in there if endpoint.key.role == "worker"),
        assignment=job.assignment,
        restore=job.restore,
    )
