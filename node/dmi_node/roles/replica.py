"""One shard on a server: as its primary, or as a copy that may be promoted. The machines decide; here it is done."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import zmq

from dmi_node.roles.tensors import Tensors
from dmi_node.roles.writer import Writer
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.messages import parameters as say
from dmi_protocol.messages.roles import CaughtUp, Roster
from dmi_protocol.training import exchange as x
from dmi_protocol.training.backup import Backup, BackupEffect, Tell
from dmi_protocol.training.copies import HEADER
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Release, Subtree, Sum
from dmi_tensor.checkpoint import CorruptPartError
from dmi_tensor.frames import frame_of, spec_of
from dmi_tensor.tree_sum import DisagreementError
from dmi_wire.bulk import Buffer
from dmi_wire.child import Child

_NAMED = 8
"""Of what differs at the end so much is named."""
FromServer = say.Fill | say.Copy | say.Replicate | say.AskCopy


class Host(Protocol):
    """What a shard needs of the process that it is in."""

    child: Child
    roster: Roster
    writer: Writer
    directory: Path

    def to_worker(
        self, worker: int, message: say.ParameterMessage, frames: Iterable[Buffer] = ()
    ) -> zmq.MessageTracker | None:
        """Send without waiting."""
        ...

    def to_server(self, server: int, message: say.ParameterMessage, frames: Iterable[Buffer] = ()) -> None:
        """Send without waiting; in order."""
        ...

    def meanwhile(self) -> None:
        """Something takes long: answer whoever asks whether we are there."""
        ...

    def is_local(self, worker: int) -> bool:
        """Is this worker on our node?"""
        ...

    def worker_name(self, worker: int) -> str:
        """For people."""
        ...


def _extra(frames: tuple[memoryview, ...]) -> bytes:
    """What the lead keeps of the run, which it sends to whom it concerns."""
    return bytes(frames[0]) if frames else b""


def _is_newest(event: x.ShardEvent) -> bool:
    """Does only the last of them count?"""
    return isinstance(event, x.Leased | x.Rostered)


class ShardReplica:
    """See the module. ``now`` is monotonic time."""

    def __init__(self, host: Host, shard: int, tensors: Tensors, now: Callable[[], Instant]) -> None:
        self._host = host
        self._index = shard
        self._tensors = tensors
        self._now = now
        self._shard: Shard | None = None
        self._backup: Backup | None = None
        self._unwritten: x.WritePart | None = None
        """What waits for the disk, and all of this shard with it; the process goes on, so that others hear of it."""
        self._later: list[x.ShardEvent] = []
        self.is_done = False
        """Has it been the primary, to the end of the job?"""

    @property
    def is_primary(self) -> bool:
        """Does it answer workers?"""
        return self._shard is not None

    @property
    def current(self) -> int:
        """The step in flight."""
        return 0 if self._shard is None else self._shard.current

    def deadline(self) -> Instant | None:
        """When ``waited`` is due."""
        return None if self._shard is None or self._unwritten is not None else self._shard.deadline()

    # Who takes part

    def become_primary(self, event: x.Rostered, leased: x.Leased) -> None:
        """Be the primary in this generation: from the beginning, still, or in the place of one that is lost. New versions are
        shown only while we are ``leased``."""
        self._tensors.replicates = bool(event.backups or event.filling)
        self._tensors.keep_lent(event.workers)
        if self._shard is not None:
            self.happened(event)
        elif self._backup is None:
            self._shard = Shard(event, self._index)
            self.happened(leased)
        else:
            self._shard, effects = Shard.promoted(event, self._index, self._backup, self._now(), leased)
            self._backup = None
            for effect in effects:
                self._host.meanwhile()
                self._do(effect)

    def waited(self) -> None:
        """The deadline is over."""
        self.happened(x.Waited())

    def silent_copies(self) -> tuple[int, ...]:
        """The servers whose word is waited for."""
        return () if self._shard is None else self._shard.silent_copies()

    def happened(self, event: x.ShardEvent) -> None:
        """To the machine, and what it wants is done; later, while the disk has no room for a part that is to be written as it
        is now."""
        if self._unwritten is not None:
            self._later = [each for each in self._later if type(each) is not type(event) or not _is_newest(event)]
            self._later.append(event)
            return
        assert self._shard is not None
        for effect in self._shard.step(self._now(), event):
            self._host.meanwhile()
            self._do(effect)

    def go_on(self) -> None:
        """The disk has written something: there may be room now."""
        if self._unwritten is None or self._host.writer.is_full:
            return
        part, self._unwritten = self._unwritten, None
        self._write(part)
        later, self._later = self._later, []
        for event in later:
            try:
                self.happened(event)
            except RemoteProtocolError as error:
                print(f"refused: {error}", file=sys.stderr, flush=True)

    # What workers say

    def hear(self, worker: int, message: say.ParameterMessage, frames: tuple[memoryview, ...]) -> None:
        """A worker's message; its tensors are put where handles point. Raises ``RemoteProtocolError``."""
        self.happened(self._event(worker, message, frames))

    def _event(self, worker: int, message: say.ParameterMessage, frames: tuple[memoryview, ...]) -> x.ShardEvent:
        match message:
            case say.Hello(_, _, named, fingerprint, definition, shared, shared_bytes):
                if named != worker:
                    raise RemoteProtocolError(f"worker-{worker} says that it is worker-{named}")
                self._tensors.greet(worker, shared if self._host.is_local(worker) else None, shared_bytes)
                return x.Greeted(worker, fingerprint.fields, definition)
            case say.AskResume():
                return x.ResumeAsked(worker)
            case say.Initial(_, _, bucket, specs):
                self._tensors.initialize(bucket, specs, frames)
                return x.Initialized(worker, bucket)
            case say.Begin(_, _, step, leaf_sizes, hyper, written, data):
                self._tensors.has_mapped(worker)
                return x.Began(worker, step, leaf_sizes, hyper, _extra(frames) if frames else None, written, data)
            case say.Contribution():
                handle = self._tensors.put(worker, message, frames)
                subtree = Subtree(message.first_leaf, message.leaves)
                return x.Contributed(worker, message.step, message.bucket, subtree, handle)
            case say.Pull(_, _, version, buckets):
                return x.Pulled(worker, version, buckets)
            case say.Checkpoint(_, _, step):
                return x.CheckpointAsked(worker, step, _extra(frames))
            case say.AskState(_, _, step, buckets):
                return x.StateAsked(worker, step, buckets)
            case say.Finish(_, _, step, kept):
                return x.FinishAsked(worker, step, _extra(frames), kept)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is not for a server")

    # What the primary says to a copy

    def follow(self, message: FromServer, frames: tuple[memoryview, ...]) -> None:
        """The primary's word. Raises ``RemoteProtocolError``."""
        match message:
            case say.Fill(_, _, definition, fields):
                self._backup = Backup(self._tensors.open(definition), definition, fields)
                self._do_all([Tell(HEADER, 0)])
            case say.Copy(_, _, version, bucket) if self._backup is not None:
                if self._backup.wants_copy(bucket, version):
                    self._tensors.copy_in(message, frames)
                    self._do_all(self._backup.copied(bucket, version))
            case say.Replicate(_, _, step, bucket, _, hyper, norms) if self._backup is not None:
                handle = self._tensors.put_root(message, frames)
                self._do_all(self._backup.replicated(step, bucket, handle, hyper, norms))
            case say.AskCopy():
                versions = () if self._backup is None else self._backup.told()
                told = say.HasCopy(self._host.roster.generation, self._index, versions)
                self._host.to_server(self._host.roster.assignment.shards[self._index].primary, told)
            case _:
                pass  # the beginning was lost, and will come again when we say what we have

    def _do_all(self, effects: Iterable[BackupEffect]) -> None:
        roster = self._host.roster
        for effect in effects:
            if isinstance(effect, Tell):
                told = say.Replicated(roster.generation, self._index, effect.version, effect.bucket)
                self._host.to_server(roster.assignment.shards[self._index].primary, told)
            else:
                self._do(effect)

    # What the machines want

    def _do(self, effect: x.ShardEffect) -> None:
        match effect:
            case Sum(left, right):
                self._add(left, right)
            case Release(handle):
                self._tensors.release(handle)
            case x.Measure(step, bucket, handle):
                self.happened(x.Measured(step, bucket, self._tensors.square(bucket, handle)))
            case x.ApplyRoot():
                self._tensors.apply(effect)
            case x.Forget():
                pass  # the memory is the next version's; what a socket still holds is waited for in ``apply``
            case x.Open(definition):
                self._open(definition)
            case x.WritePart():
                self._write(effect)
            case x.End():
                self.is_done = True
            case (
                x.BeginFill() | x.CopyBucket() | x.ReplicateRoot() | x.QueryReplica() | x.TellCaughtUp() | x.TellNorms()
            ):
                self._to_servers(effect)
            case _:
                self._to_workers(effect)

    def _open(self, definition: bytes) -> None:
        try:
            opened = self._tensors.open(definition)
        except CorruptPartError as error:
            line = f"the job cannot go on from its checkpoint: {error}"
            self._host.child.fail("checkpoint", line, starting=False)
        self.happened(opened)

    def _add(self, left: Handle, right: Handle) -> None:
        try:
            self._tensors.add(left, right)
        except DisagreementError as error:
            line = (
                f"the leaves of step {self.current} disagree about the buffer {error}: make it a function of "
                "the step, or keep it out of the module"
            )
            self._host.child.fail("disagreement", line, starting=False)

    def _write(self, effect: x.WritePart) -> None:
        if self._host.writer.is_full:
            self._unwritten = effect
            return
        name = f"{'final' if effect.final else 'part'}-{self._index}-{effect.step}.safetensors"
        part = self._tensors.part(effect.step, effect.extra, effect.fingerprint)
        self._host.writer.write(self._host.directory / name, part, self._index, final=effect.final)

    def _to_servers(self, effect: x.ToServers) -> None:
        host, generation, shard = self._host, self._host.roster.generation, self._index
        match effect:
            case x.BeginFill(server, definition, fields):
                host.to_server(server, say.Fill(generation, shard, definition, fields))
            case x.CopyBucket(server, bucket, version):
                found = self._tensors.copy_out(bucket, version)
                specs = tuple(spec_of(tensor) for tensor in found.tensors)
                message = say.Copy(generation, shard, version, bucket, specs, found.state, found.hyper, found.detail)
                host.to_server(server, message, [frame_of(tensor) for tensor in found.tensors])
            case x.ReplicateRoot(servers, step, bucket, handle, hyper, norms):
                root = self._tensors.root(handle)
                told = say.Replicate(generation, shard, step, bucket, root.tensors, hyper, norms, root.detail)
                for server in servers:
                    host.to_server(server, told, root.frames)
            case x.TellNorms(step, squares, asks):
                for index in {replicas.primary for replicas in host.roster.assignment.shards}:
                    host.to_server(index, say.Norms(generation, step, shard, squares, asks))
            case x.QueryReplica(server):
                host.to_server(server, say.AskCopy(generation, shard))
            case x.TellCaughtUp(server):
                host.child.tell(CaughtUp(generation, shard, server))

    def _to_workers(self, effect: x.ShardEffect) -> None:
        host, generation, shard = self._host, self._host.roster.generation, self._index
        match effect:
            case x.WelcomeWorker(worker, step, extra):
                shared, size = self._tensors.offer(worker)
                welcome = say.Welcome(generation, shard, step, shared, size)
                host.to_worker(worker, welcome, () if extra is None else (extra,))
            case x.GiveResume(worker):
                host.to_worker(worker, say.Resume(generation), (self._tensors.extra,))
            case x.ShowBucket(version, bucket, workers):
                for worker in workers:
                    self._show(worker, version, bucket)
            case x.TellOutstanding(worker, step, held):
                told = tuple((bucket, tuple((s.first, s.leaves) for s in subtrees)) for bucket, subtrees in held)
                host.to_worker(worker, say.Outstanding(generation, shard, step, told))
            case x.TellLacking(worker, buckets):
                host.to_worker(worker, say.Lacking(generation, shard, buckets))
            case x.GiveState(worker, step, buckets):
                self._give_state(worker, step, buckets)
            case x.Decline(worker, kind, value):
                host.to_worker(worker, say.Declined(generation, kind, f"{kind}: here it is {value}"))
            case x.SayFinished() | x.TellDifference():
                self._end(effect)
            case x.Disagree():
                host.child.fail("disagreement", self._sentence(effect), starting=False)

    def _end(self, effect: x.SayFinished | x.TellDifference) -> None:
        host = self._host
        if isinstance(effect, x.SayFinished):
            for worker in effect.workers:
                host.to_worker(worker, say.Finished(host.roster.generation, self._index))
            return
        who, other, what = (
            host.worker_name(effect.worker),
            host.worker_name(effect.lead),
            ", ".join(effect.names[:_NAMED]),
        )
        print(f"at the end {who} has other values than {other}, whose are kept: {what}", flush=True)

    def _show(self, worker: int, version: int, bucket: int) -> None:
        has_before = self._shard is not None and self._shard.has_installed(worker, version - 1)
        shown = self._tensors.show(worker, version, bucket, has_before=has_before)
        generation = self._host.roster.generation
        message = say.Show(generation, self._index, version, bucket, shown.tensors, shown.detail, shown.region)
        self._tensors.lend(worker, bucket, version, self._host.to_worker(worker, message, shown.frames))

    def _give_state(self, worker: int, step: int, buckets: Iterable[int]) -> None:
        generation = self._host.roster.generation
        for bucket in buckets:
            found = self._tensors.optimizer_state(bucket)
            specs = tuple(spec_of(tensor) for tensor in found.tensors)
            message = say.State(generation, self._index, step, bucket, specs, found.state, found.hyper)
            self._host.to_worker(worker, message, [frame_of(tensor) for tensor in found.tensors])

    def _sentence(self, found: x.Disagree) -> str:
        """One line that names both hosts and the field."""
        values = f": {found.value or 'nothing'} and {found.other_value or 'nothing'}"
        shown = values if found.value or found.other_value else ""
        other = "the checkpoint" if found.other is None else self._host.worker_name(found.other)
        return f"{self._host.worker_name(found.worker)} and {other} differ in {found.field}{shown}"
