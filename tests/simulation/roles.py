"""Role processes, and the sockets between them: shells around the two pure machines of an exchange.

Their connections are like TCP: in order, nothing lost, but standing still while the network between the hosts is cut.
What the machines say twice on purpose is also delivered twice by chance.
"""

import hashlib
from collections import deque
from typing import NamedTuple, Protocol

from dmi_protocol.events import RoleHappened
from dmi_protocol.identity import BlobHash, PublicKey
from dmi_protocol.messages.roles import (
    Assignment,
    Bound,
    Completed,
    Exited,
    PartWritten,
    Progressed,
    RoleEvent,
    RoleKey,
    Roster,
    Started,
)
from dmi_protocol.training import exchange as x
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Release, Sum
from dmi_protocol.training.tree import shares
from dmi_protocol.training.worker import Worker
from tests.simulation.clock import Clock
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.tensors import Memory, Tensor, Tensors
from tests.simulation.trouble import Violation, demand

BUCKETS = 3
_CUT_MS = 100
_WAIT_MS = 250
_COMPUTE_MS = 400
_WRITE_MS = 150
_REPEATED = 0.08
_HELD = 4_096
"""No role process ever has more tensors, or a fuller socket."""


class Said(NamedTuple):
    """What one role process sends to another; ``tensor`` goes beside the event, or the version that is shown."""

    event: x.ShardEvent | x.WorkerEvent | x.Welcome | x.Decline | x.SayFinished
    tensor: Tensor | None = None
    shown: int | None = None


class Process(Protocol):
    """A living role process."""

    key: RoleKey
    public_key: PublicKey
    node: Node
    life: int
    """The life of its daemon: what a process said before it ended still arrives, unless the whole host is gone."""
    is_alive: bool

    def begin(self, roster: Roster) -> None:
        """All seats are taken."""
        ...

    def hear(self, sender: RoleKey, said: Said) -> None:
        """Another role process says something."""
        ...


class Sockets:
    """Every connection between living role processes."""

    def __init__(self, clock: Clock, network: Network) -> None:
        self.clock = clock
        self._network = network
        self.processes: dict[PublicKey, Process] = {}
        self.holders: dict[RoleKey, Process] = {}
        """The last process that was started for each role."""
        self._ways: dict[tuple[PublicKey, PublicKey], deque[Said]] = {}

    def say(self, source: Process, target: PublicKey, said: Said) -> None:
        """Send; what can be repeated is repeated by chance."""
        way = self._ways.setdefault((source.public_key, target), deque())
        is_idle = not way
        way.append(said)
        repeatable = isinstance(said.event, x.Contributed | x.Shown | x.Pulled | x.NormsHeard)
        if repeatable and self.clock.random.random() < _REPEATED:
            way.append(said)
        demand("queues", len(way) <= _HELD, f"{len(way)} messages wait at {source.key}")
        if is_idle:
            self._plan(source, target)

    def _plan(self, source: Process, target: PublicKey) -> None:
        self.clock.later(self._network.delay_ms(), self._pump, source, target)

    def _pump(self, source: Process, target: PublicKey) -> None:
        way = self._ways[source.public_key, target]
        heard = self.processes.get(target)
        if source.life != source.node.life or heard is None or not heard.is_alive:
            way.clear()
            return
        if not self._network.is_open(source.node.name, heard.node.name):
            self.clock.later(_CUT_MS, self._pump, source, target)
            return
        for said in [way.popleft() for _ in range(min(len(way), 4))]:
            if heard.is_alive:
                heard.hear(source.key, said)
        if way:
            self._plan(source, target)


class Server:
    """The parameter server's process."""

    def __init__(self, sockets: Sockets, node: Node, assignment: Assignment) -> None:
        self.key = assignment.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.life = node.life
        self.is_alive = True
        self._sockets = sockets
        self._leaves = assignment.leaves or 4
        self._parts = assignment.part_hashes
        self._tensors = Tensors(str(self.key))
        self._shard: Shard | None = None
        self._memory = Memory(())
        self._written_at = 0
        """When its disk has written all that it was given."""
        self._early: list[tuple[RoleKey, Said]] = []

    def begin(self, roster: Roster) -> None:
        """See ``Process``."""
        self._roster = roster
        everybody = tuple(range(len(roster.workers)))
        self._shard = Shard(x.Rostered(roster.generation, everybody, roster.lead), self.key.index)
        self._buckets = owned(self.key.index, len(roster.servers))
        self._memory = Memory(self._buckets, roster.restore or 0)
        if roster.restore is not None:
            self._restore(roster.restore)
        early, self._early = self._early, []
        for sender, said in early:
            self.hear(sender, said)

    def _restore(self, step: int) -> None:
        """What lies in the parts that this host has must be all that the shard begins with."""
        held: dict[int, int] = {}
        for blob in self._parts:
            demand("parts", blob in self.node.blobs, f"{self.key} begins without a part of its checkpoint")
            held |= self.node.blobs[blob]
        for bucket in self._buckets:
            found = held.get(bucket)
            demand("parts", found == step, f"{self.key} begins step {step} with version {found} of bucket {bucket}")

    def hear(self, sender: RoleKey, said: Said) -> None:
        """See ``Process``."""
        if self._shard is None:
            self._early.append((sender, said))
            return
        event = said.event
        if isinstance(event, x.Contributed):
            handle = self._tensors.put(said.tensor)
            event = x.Contributed(event.worker, event.generation, event.step, event.bucket, event.subtree, handle)
        self._tell(event)  # type: ignore[arg-type]
        demand("queues", len(self._tensors) < _HELD, f"{self.key} holds {len(self._tensors)} tensors")

    def _tell(self, event: x.ShardEvent) -> None:
        assert self._shard is not None
        for effect in self._shard.step(self._sockets.clock.now, event):
            self._do(effect)
        self._shard.check()

    def _do(self, effect: x.ShardEffect) -> None:
        match effect:
            case Sum() | Release():
                self._tensors.do(effect)
            case x.Open():
                holders = tuple(s for s in range(len(self._roster.servers)) if owned(s, len(self._roster.servers)))
                step = self._roster.restore
                self._tell(x.Opened(self._buckets, (), self._leaves, clips=False, shards=holders, step=step))
            case x.Apply(step, bucket, handle):
                root = self._tensors.get(handle)
                fenced = root is None or root.generation == self.key.generation
                demand("generations", fenced, f"{self.key} applies a sum of another generation")
                self._memory.apply(bucket, step, root, (1 << self._leaves) - 1)
            case x.Show(version, bucket, workers):
                shown = self._memory.read(bucket, version)
                for worker in workers:
                    self._say(worker, Said(x.Shown(self.key.generation, version, bucket), shown=shown))
            case x.Forget(version):
                self._memory.forget(version)
            case _:
                self._converse(effect)

    def _converse(self, effect: x.ShardEffect) -> None:
        match effect:
            case x.Welcome(worker):
                self._say(worker, Said(effect))
            case x.SayFinished(workers):
                for worker in workers:
                    self._say(worker, Said(effect))
            case x.WritePart(step, _, final):
                held = {bucket: self._memory.read(bucket, step) for bucket in self._buckets}
                clock = self._sockets.clock
                self._written_at = max(clock.now, self._written_at) + 1 + int(_WRITE_MS * clock.random.random())
                clock.at(self._written_at, self._written, step, final, held)
            case x.End():
                self._tell_daemon(Completed())
                self._sockets.clock.later(2, exits, self, 0)
            case x.Decline(_, kind, value):
                raise Violation(
                    "versions" if kind == "version" else "generations", f"{self.key} declines {kind} {value}"
                )
            case x.Disagree():
                raise Violation("agreement", f"{self.key} finds that workers disagree: {effect}")
            case _:
                raise AssertionError(f"a job that does not clip wants {effect}")

    def _written(self, step: int, final: bool, held: dict[int, int]) -> None:
        """The part is on the disk, under a name that is the hash of what is in it."""
        if not self.is_alive:
            return
        name = f"{self.key.job}/{len(self._roster.servers)}/{self.key.index}/{step}"
        blob = BlobHash(hashlib.sha256(name.encode()).hexdigest())
        self.node.blobs[blob] = held
        self._tell_daemon(PartWritten(step, self.key.index, blob, "part", 1, final))
        self._tell(x.PartDurable(step, final))

    def _say(self, worker: int, said: Said) -> None:
        self._sockets.say(self, self._roster.workers[worker].public_key, said)

    def _tell_daemon(self, event: RoleEvent) -> None:
        tell_daemon(self, self._sockets.clock, event)


class ScriptedWorker:
    """The worker's process, with a script of ``steps`` steps and a checkpoint after every third."""

    def __init__(self, sockets: Sockets, node: Node, assignment: Assignment) -> None:
        self.key = assignment.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.life = node.life
        self.is_alive = True
        self._sockets = sockets
        self._leaves = assignment.leaves or 4
        self._steps = int(assignment.args[0])
        self._tensors = Tensors(str(self.key))
        self._machine: Worker | None = None
        self.is_idle = False
        """Has it begun, without a leaf to compute?"""
        self._version = 0
        self._parameters = [0] * BUCKETS
        self._shown: dict[tuple[int, int], int] = {}
        self._welcomes: set[RoleKey] = set()
        self._finished: set[RoleKey] = set()
        self._heard_at = 0
        self._is_fetching = False
        """Has it asked for the version that a checkpoint has?"""
        self._early: list[tuple[RoleKey, Said]] = []

    def begin(self, roster: Roster) -> None:
        """See ``Process``."""
        self._roster = roster
        share = tuple(shares(roster.speeds, self._leaves)[self.key.index])
        self._machine = Worker(x.Assigned(roster.generation, share), BUCKETS)
        self.is_idle = not share
        worker, generation = self.key.index, roster.generation
        for seat in roster.servers:
            self._say(seat.public_key, Said(x.Greeted(worker, generation, (("torch", "fake"),), b"model")))
            gives = roster.lead == worker and roster.restore is None
            for bucket in owned(seat.key.index, len(roster.servers)) if gives else ():
                self._say(seat.public_key, Said(x.Initialized(worker, generation, bucket)))
        early, self._early = self._early, []
        for sender, said in early:
            self.hear(sender, said)

    def hear(self, sender: RoleKey, said: Said) -> None:
        """See ``Process``."""
        self._heard_at = self._sockets.clock.now
        match said.event:
            case _ if self._machine is None:
                self._early.append((sender, said))
            case x.Welcome():
                self._welcomes.add(sender)
                if len(self._welcomes) == len(self._roster.servers) and self._machine.current is None:
                    self._begin_at(self._roster.restore)
            case x.SayFinished():
                self._finished.add(sender)
                if len(self._finished) == len(self._roster.servers):
                    self._tell_daemon(Completed())
                    self._sockets.clock.later(1, exits, self, 0)
            case x.Shown(_, version, bucket):
                assert said.shown is not None
                self._shown[version, bucket] = said.shown
                if self._is_fetching:
                    self._fetched()
                else:
                    self._happened(said.event)
            case _:
                raise AssertionError(f"a server said {said.event}")

    def _begin_at(self, restore: int | None) -> None:
        """At the first step, or once the servers have shown the version that they have from a checkpoint."""
        if restore is None:
            self._next_step()
            self._wait()
            return
        self._is_fetching = True
        self._version = restore
        for bucket in range(BUCKETS):
            self._say(
                self._server_of(bucket), Said(x.Pulled(self.key.index, self._roster.generation, restore, (bucket,)))
            )

    def _fetched(self) -> None:
        if len([1 for version, _ in self._shown if version == self._version]) == BUCKETS:
            self._is_fetching = False
            for bucket in range(BUCKETS):
                self._parameters[bucket] = self._shown.pop((self._version, bucket))
            self._next_step()
            self._wait()

    def _next_step(self) -> None:
        step, worker, generation = self._version, self.key.index, self.key.generation
        is_lead = self._roster.lead == worker
        if is_lead and step and step % 3 == 0 and step != self._roster.restore:
            self._tell_daemon(Progressed(step, self._steps, 1.0, 0.5))
            self._say_all(x.CheckpointAsked(worker, generation, step, b""))
        if step == self._steps:
            if is_lead:
                self._tell_daemon(Progressed(step, self._steps, 1.0, 0.5))
            self._say_all(x.FinishAsked(worker, generation, step, b""))
            return
        self._say_all(x.Began(worker, generation, step, (1,) * self._leaves, b"lr"))
        self._happened(x.StepBegan(step))

    def _happened(self, event: x.WorkerEvent) -> None:
        assert self._machine is not None
        for effect in self._machine.step(self._sockets.clock.now, event):
            match effect:
                case Sum() | Release():
                    self._tensors.do(effect)
                case x.Compute(step, leaf):
                    delay = 1 + int(_COMPUTE_MS * self._sockets.clock.random.random())
                    self._sockets.clock.later(delay, self._compute, step, leaf)
                case x.Push(generation, step, bucket, subtree, handle):
                    told = x.Contributed(self.key.index, generation, step, bucket, subtree, None)
                    self._say(self._server_of(bucket), Said(told, self._tensors.get(handle)))
                case x.Pull(generation, version, buckets):
                    for bucket in buckets:
                        pulled = x.Pulled(self.key.index, generation, version, (bucket,))
                        self._say(self._server_of(bucket), Said(pulled))
                case x.Install(version):
                    self._install(version)
        self._machine.check()

    def _install(self, version: int) -> None:
        for bucket in range(BUCKETS):
            self._parameters[bucket] = self._shown.pop((version, bucket))
        whole = set(self._parameters) == {version}
        demand("versions", whole, f"{self.key} installs {self._parameters} as version {version}")
        self._version = version
        self._sockets.clock.later(1, self._go_on, version)

    def _go_on(self, version: int) -> None:
        if self.is_alive and self._version == version:
            self._next_step()

    def _compute(self, step: int, leaf: int) -> None:
        if not self.is_alive or self._machine is None or self._machine.current != step:
            return
        demand("versions", set(self._parameters) == {step}, f"{self.key} computes step {step} on {self._parameters}")
        for bucket in range(BUCKETS):
            tensor = Tensor(1 << leaf, self._parameters[bucket], self.key.generation)
            self._happened(x.Computed(step, leaf, bucket, self._tensors.put(tensor)))

    def _wait(self) -> None:
        """Patience with silence: everything that may be lost is said again."""
        if not self.is_alive or self._machine is None:
            return
        if self._machine.current is not None and self._sockets.clock.now - self._heard_at >= _WAIT_MS:
            self._happened(x.Waited())
        self._sockets.clock.later(_WAIT_MS, self._wait)

    def _server_of(self, bucket: int) -> PublicKey:
        return self._roster.servers[bucket % len(self._roster.servers)].public_key

    def _say(self, server: PublicKey, said: Said) -> None:
        self._sockets.say(self, server, said)

    def _say_all(self, event: x.ShardEvent) -> None:
        for seat in self._roster.servers:
            self._say(seat.public_key, Said(event))

    def _tell_daemon(self, event: RoleEvent) -> None:
        tell_daemon(self, self._sockets.clock, event)


def owned(shard: int, shards: int) -> tuple[int, ...]:
    """The buckets of a shard."""
    return tuple(range(shard, BUCKETS, shards))


def tell_daemon(process: Process, clock: Clock, event: RoleEvent) -> None:
    """Through the pipe to the parent: in order, and only while both live."""
    node, life = process.node, process.node.life
    clock.later(1, _tell, node, life, RoleHappened(process.key, event))


def _tell(node: Node, life: int, event: RoleHappened) -> None:
    if node.life == life:
        node.give(event)


def exits(process: Process, code: int, signal: int = 0) -> None:
    """The process ends, and its parent sees it."""
    if process.is_alive:
        process.is_alive = False
        _tell(process.node, process.node.life, RoleHappened(process.key, Exited(code, signal)))


def spawn(sockets: Sockets, node: Node, assignment: Assignment) -> Process:
    """A new process, which will be bound a little later."""
    made = Server if assignment.key.role == "server" else ScriptedWorker
    process: Process = made(sockets, node, assignment)
    sockets.processes[process.public_key] = sockets.holders[assignment.key] = process
    clock = sockets.clock
    tell_daemon(process, clock, Started(1))
    slowest = clock.random.choice([50, 50, 500, 4_000])  # some import torch on a busy host
    clock.later(5 + int(slowest * clock.random.random()), _bind, process, clock)
    return process


def _bind(process: Process, clock: Clock) -> None:
    if process.is_alive:
        where = f"{process.key.role}-{process.key.index}.{process.node.name}:1"
        tell_daemon(process, clock, Bound(where, process.public_key, 1))
