"""A parameter server's process: a shell around the machines of the shards that it has copies of."""

import hashlib
from typing import NamedTuple

from dmi_protocol.identity import BlobHash, PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import (
    CaughtUp,
    Completed,
    Lease,
    PartWritten,
    Role,
    RoleEvent,
    RoleKey,
    Roster,
    TrainingLaunch,
)
from dmi_protocol.training import exchange as x
from dmi_protocol.training.backup import Backup, BackupEffect, Tell
from dmi_protocol.training.copies import HEADER
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.silence import Silences
from dmi_protocol.training.step import Release, Sum
from tests.simulation.node import Node
from tests.simulation.process import Beat, Bucketful, Filled, Replica, Said, tell_daemon
from tests.simulation.sockets import HELD, Sockets, owned
from tests.simulation.tensors import Memory, Tensors
from tests.simulation.trouble import Violation, demand

_WRITE_MS = 150
_LOOK_MS = 1_000


class _Copy:
    """A shard on this server: with a machine of one kind or the other."""

    def __init__(self) -> None:
        self.shard: Shard | None = None
        self.backup: Backup | None = None
        self.memory = Memory()
        self.is_done = False


class _Heard(NamedTuple):
    sender: RoleKey
    said: Said


class Server:
    """See the module."""

    def __init__(self, sockets: Sockets, node: Node, launch: TrainingLaunch) -> None:
        self.key = launch.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.boot_count = node.boot_count
        self.is_alive = True
        self._sockets = sockets
        self._leaves = launch.leaves or 4
        self._parts = launch.needs
        self._tensors = Tensors(str(self.key))
        self._roster: Roster | None = None
        self._copies: dict[int, _Copy] = {}
        self._written_at = 0
        """When its disk has written all that it was given."""
        self._early: list[_Heard] = []
        self._has_waited = False
        self._leased = Instant(0)
        self._heard: dict[int, int] = {}
        """When each worker was heard, if only that it is there."""
        self._silences = Silences()

    # Who takes part

    def roster(self, roster: Roster) -> None:
        """See ``Process``."""
        before, self._roster = self._roster, roster
        now, workers = self._sockets.clock.now, [endpoint.key.index for endpoint in roster.workers]
        self._heard = {worker: self._heard.get(worker, now) for worker in workers}
        if before is None:
            self._lose_patience()
        self._peers = {endpoint.key: endpoint.public_key for endpoint in (*roster.servers, *roster.workers)}
        for shard, replicas in enumerate(roster.assignment.shards):
            self._assignment(shard, roster, was_there=before is not None)
            if self.key.index not in (*replicas.in_sync, *replicas.filling):
                self._copies.pop(shard, None)
        early, self._early = self._early, []
        for heard in early:
            self.hear(*heard)

    def _assignment(self, shard: int, roster: Roster, *, was_there: bool) -> None:
        replicas = roster.assignment.shards[shard]
        if replicas.primary != self.key.index:
            return
        event = x.Rostered(
            roster.generation,
            roster.assignment.workers,
            roster.assignment.lead,
            roster.joiners,
            replicas.backups,
            replicas.filling,
        )
        held = self._copies.get(shard)
        if held is None:
            demand("promotion", not was_there, f"{self.key} is primary of shard {shard}, which it has no copy of")
            held = self._copies[shard] = _Copy()
            held.shard = Shard(event, shard)
            self._tell(shard, x.Leased(self._leased))
            if roster.restore is not None:
                self._restore(shard, roster.restore)
        elif held.shard is not None:
            self._tell(shard, event)
        else:
            self._promote(shard, held, event)

    def lease(self, lease: Lease) -> None:
        """See ``Process``."""
        self._leased = lease.until
        for shard, held in list(self._copies.items()):
            if held.shard is not None:
                self._tell(shard, x.Leased(lease.until))

    def _promote(self, shard: int, held: _Copy, event: x.Rostered) -> None:
        assert held.backup is not None
        assert self._roster is not None
        for bucket in owned(shard, len(self._roster.assignment.shards)):
            seen = self._sockets.seen.get((self.key.job, self._roster.start_generation, bucket), 0)
            has = held.backup.versions.get(bucket, -1)
            demand("survival", has >= seen, f"bucket {bucket} was shown at {seen}, and {self.key} has {has}")
        self._sockets.counters["promotions"] += 1
        leased = x.Leased(self._leased)
        held.shard, effects = Shard.promoted(event, shard, held.backup, self._sockets.clock.now, leased)
        held.backup = None
        for effect in effects:
            self._do(shard, effect)

    def _restore(self, shard: int, step: int) -> None:
        """What lies in the parts that this host has must be all that the shard begins with."""
        assert self._roster is not None
        had: dict[int, int] = {}
        for blob in self._parts:
            demand("parts", blob in self.node.blobs, f"{self.key} begins without a part of its checkpoint")
            had |= self.node.blobs[blob]
        for bucket in owned(shard, len(self._roster.assignment.shards)):
            found = had.get(bucket)
            demand("parts", found == step, f"{self.key} begins step {step} with version {found} of bucket {bucket}")

    # What is said here

    def hear(self, sender: RoleKey, said: Said) -> None:
        """See ``Process``."""
        if self._roster is None or (sender not in self._peers and sender.generation >= self._roster.start_generation):
            self._early.append(_Heard(sender, said))
            demand("queues", len(self._early) < HELD, f"{self.key} keeps {len(self._early)} early messages")
            return
        if sender not in self._peers:
            return
        if sender.role == "worker" and sender.index in self._heard:
            self._heard[sender.index] = self._sockets.clock.now
        if isinstance(said.event, Beat):
            self._say(sender.index, said.shard, said.event)
        elif isinstance(said.event, Filled | Replica | Bucketful | x.Copied | x.QueryReplica | x.CopyTold):
            self._from_server(sender, said)
        else:
            held = self._copies.get(said.shard)
            if held is not None and held.shard is not None:
                self._from_worker(held, said)
            elif not isinstance(said.event, x.NormsHeard):
                self._early.append(_Heard(sender, said))  # it knows already that we are the primary
        if len(self._tensors) >= HELD:
            raise Violation("queues", f"{self.key} holds {len(self._tensors)} tensors")

    def _from_worker(self, held: _Copy, said: Said) -> None:
        event = said.event
        if isinstance(event, x.Contributed):
            handle = self._tensors.put(said.tensor)
            event = x.Contributed(event.worker, event.step, event.bucket, event.subtree, handle)
        self._tell(said.shard, event)  # type: ignore[arg-type]

    def _from_server(self, sender: RoleKey, said: Said) -> None:
        """The fence: only the primary of the roster in force is obeyed."""
        assert self._roster is not None
        if said.generation > self._roster.generation:
            self._early.append(_Heard(sender, said))
            return
        if isinstance(said.event, x.Copied) or self._is_of_now(said):
            held = self._copies.get(said.shard)
            if held is not None and held.shard is not None:
                self._tell(said.shard, said.event)  # type: ignore[arg-type]
            return
        if isinstance(said.event, x.CopyTold):
            return
        if sender.index != self._roster.assignment.shards[said.shard].primary:
            return
        held = self._copies.setdefault(said.shard, _Copy())
        match said.event:
            case x.QueryReplica():
                told = () if held.backup is None else held.backup.told()
                self._send(self._roster.primary(said.shard).public_key, said.shard, x.CopyTold(self.key.index, told))
            case Filled(definition, fields):
                buckets = owned(said.shard, len(self._roster.assignment.shards))
                held.memory = Memory()
                held.backup = Backup(x.Opened(buckets, (), self._leaves, clips=False, shards=()), definition, fields)
                self._do_all(said.shard, [Tell(HEADER, 0)])
            case Bucketful(bucket, version) if held.backup is not None and held.backup.wants_copy(bucket, version):
                held.memory.put(bucket, version)
                self._do_all(said.shard, held.backup.copied(bucket, version))
            case Replica(step, bucket, hyper) if held.backup is not None:
                handle = self._tensors.put(said.tensor)
                self._do_all(said.shard, held.backup.replicated(step, bucket, handle, hyper, ()))
                held.backup.check()

    def _is_of_now(self, said: Said) -> bool:
        assert self._roster is not None
        return isinstance(said.event, x.CopyTold) and said.generation == self._roster.generation

    def _tell(self, shard: int, event: x.ShardEvent) -> None:
        machine = self._copies[shard].shard
        assert machine is not None
        for effect in machine.step(self._sockets.clock.now, event):
            self._do(shard, effect)
        machine.check()
        deadline = machine.deadline()
        if deadline is not None and not self._has_waited:
            self._has_waited = True
            self._sockets.later(self, deadline - self._sockets.clock.now, self._wait, shard)

    def _wait(self, shard: int) -> None:
        self._has_waited = False
        held = self._copies.get(shard)
        if self.is_alive and held is not None and held.shard is not None and held.shard.deadline() is not None:
            self._tell(shard, x.Waited())

    def _lose_patience(self) -> None:
        assert self._roster is not None
        now = self._sockets.clock.now
        silent: dict[tuple[Role, int], int] = {("worker", w): now - heard for w, heard in self._heard.items()}
        for report in self._silences.look(self._roster.generation, silent) if self.is_alive else ():
            self._tell_daemon(report)
        if self.is_alive:
            self._sockets.later(self, _LOOK_MS, self._lose_patience)

    # What is wanted here

    def _do_all(self, shard: int, effects: list[BackupEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                assert self._roster is not None
                primary = self._roster.primary(shard)
                told = x.Copied(self.key.index, effect.bucket, effect.version)
                self._send(primary.public_key, shard, told)
            else:
                self._do(shard, effect)

    def _send(self, to: PublicKey, shard: int, event: object, **beside: object) -> None:
        assert self._roster is not None
        self._sockets.say(self, to, Said(shard, self._roster.generation, event, **beside))  # type: ignore[arg-type]

    def _server(self, index: int) -> PublicKey:
        assert self._roster is not None
        return next(endpoint.public_key for endpoint in self._roster.servers if endpoint.key.index == index)

    def _do(self, shard: int, effect: x.ShardEffect) -> None:
        assert self._roster is not None
        memory = self._copies[shard].memory
        match effect:
            case Sum() | Release():
                self._tensors.do(effect)
            case x.Open():
                shards = len(self._roster.assignment.shards)
                holders = tuple(s for s in range(shards) if owned(s, shards))
                step, buckets = self._roster.restore, owned(shard, shards)
                for bucket in buckets:
                    memory.put(bucket, step or 0)
                self._tell(shard, x.Opened(buckets, (), self._leaves, clips=False, shards=holders, step=step))
            case x.ApplyRoot(step, bucket, handle):
                memory.apply(bucket, step, self._tensors.get(handle), (1 << self._leaves) - 1)
            case x.ShowBucket(version, bucket, workers):
                now = self._sockets.clock.now
                demand(
                    "leases",
                    now < self._leased,
                    f"{self.key} shows {version} at {now}, its lease ended at {self._leased}",
                )
                self._is_alone(shard, bucket, version)
                shown = memory.read(bucket, version)
                for worker in workers:
                    self._say(worker, shard, x.Shown(version, bucket), shown=shown)
            case x.Forget(version):
                memory.forget(version)
            case x.BeginFill() | x.CopyBucket() | x.QueryReplica() | x.ReplicateRoot():
                self._to_servers(shard, effect)
            case _:
                self._converse(shard, effect)

    def _to_servers(self, shard: int, effect: x.BeginFill | x.CopyBucket | x.QueryReplica | x.ReplicateRoot) -> None:
        match effect:
            case x.BeginFill(server, definition, fields):
                self._send(self._server(server), shard, Filled(definition, fields))
            case x.CopyBucket(server, bucket, version):
                self._copies[shard].memory.read(bucket, version)
                self._send(self._server(server), shard, Bucketful(bucket, version))
            case x.QueryReplica(server):
                self._send(self._server(server), shard, effect)
            case x.ReplicateRoot(servers, step, bucket, handle, hyper):
                for server in servers:
                    root = self._tensors.get(handle)
                    self._send(self._server(server), shard, Replica(step, bucket, hyper), tensor=root)

    def _is_alone(self, shard: int, bucket: int, version: int) -> None:
        """Nothing is shown that the primary of a later generation has not."""
        assert self._roster is not None
        for other in self._sockets.processes.values():
            if isinstance(other, Server) and other is not self and other.is_alive and other.key.job == self.key.job:
                other.must_have(self._roster, shard, bucket, version)

    def must_have(self, roster: Roster, shard: int, bucket: int, version: int) -> None:
        """Another primary, by its ``roster``, shows a version."""
        held = self._copies.get(shard)
        if self._roster is None or held is None or held.shard is None:
            return
        if self._roster.start_generation == roster.start_generation and self._roster.generation > roster.generation:
            has = held.memory.latest(bucket)
            demand(
                "primaries",
                has >= version,
                f"a former primary shows {version} of bucket {bucket}, {self.key} has {has}",
            )

    def _converse(self, shard: int, effect: x.ShardEffect) -> None:
        match effect:
            case x.WelcomeWorker(worker) | x.TellOutstanding(worker) | x.TellLacking(worker):
                self._say(worker, shard, effect)
            case x.SayFinished(workers):
                for worker in workers:
                    self._say(worker, shard, effect)
            case x.WritePart(step, _, final):
                memory = self._copies[shard].memory
                assert self._roster is not None
                buckets = owned(shard, len(self._roster.assignment.shards))
                held = {bucket: memory.read(bucket, step) for bucket in buckets}
                clock = self._sockets.clock
                self._written_at = max(clock.now, self._written_at) + 1 + int(_WRITE_MS * clock.random.random())
                self._sockets.later(self, self._written_at - clock.now, self._written, shard, step, final, held)
            case x.TellCaughtUp(server):
                assert self._roster is not None
                self._tell_daemon(CaughtUp(self._roster.generation, shard, server))
            case x.TellNorms(_, squares):
                demand("norms", not squares, "a job that does not clip has norms")
            case x.End():
                self._end(shard)
            case x.Decline(_, "peer"):
                pass  # it is no worker of the job any more, and will be told to end
            case x.Decline(_, kind, value):
                raise Violation("versions", f"{self.key} declines {kind} {value}")
            case x.Disagree():
                raise Violation("agreement", f"{self.key} finds that workers disagree: {effect}")
            case _:
                raise AssertionError(f"a job that does not clip wants {effect}")

    def _end(self, shard: int) -> None:
        self._copies[shard].is_done = True
        if all(held.is_done for held in self._copies.values() if held.shard is not None):
            self._tell_daemon(Completed())

    def _written(self, shard: int, step: int, final: bool, held: dict[int, int]) -> None:
        """The part is on the disk, under a name that is the hash of what is in it."""
        if not self.is_alive or shard not in self._copies or self._roster is None:
            return
        name = f"{self.key.job}/{len(self._roster.assignment.shards)}/{shard}/{step}"
        blob = BlobHash(hashlib.sha256(name.encode()).hexdigest())
        self.node.blobs[blob] = held
        self._tell_daemon(PartWritten(step, shard, blob, "part", 1, final))
        self._tell(shard, x.PartDurable(step, final))

    def _say(self, worker: int, shard: int, event: object, *, shown: int | None = None) -> None:
        assert self._roster is not None
        key = next((endpoint.public_key for endpoint in self._roster.workers if endpoint.key.index == worker), None)
        if key is not None:
            self._send(key, shard, event, shown=shown)

    def _tell_daemon(self, event: RoleEvent) -> None:
        tell_daemon(self, self._sockets.clock, event)
