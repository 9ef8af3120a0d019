"""A few workers and shards with fake tensors: a tensor is its own history, written as text."""

from collections.abc import Iterator
from random import Random
from typing import Literal

from msgspec import Struct

from dmi_protocol.instant import Instant
from dmi_protocol.training import exchange as x
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Release, Subtree, Sum
from dmi_protocol.training.worker import Worker

NOW = Instant(0)


def fixed(first: int, leaves: int, version: int, absent: frozenset[int] = frozenset()) -> str | None:
    """The dumb twin: the sum of the leaves computed on ``version``, with its brackets."""
    if leaves == 1:
        return None if first in absent else f"{first}@{version}"
    half = leaves // 2
    left, right = fixed(first, half, version, absent), fixed(first + half, half, version, absent)
    if left is None or right is None:
        return left if left is not None else right
    return f"({left}+{right})"


class Tensors:
    """What a shell holds."""

    def __init__(self) -> None:
        self.held: dict[Handle, str] = {}
        self._next = 0

    def put(self, value: str | None) -> Handle | None:
        if value is None:
            return None
        self._next += 1
        self.held[Handle(self._next)] = value
        return Handle(self._next)

    def get(self, handle: Handle | None) -> str | None:
        return None if handle is None else self.held[handle]

    def do(self, effect: Sum | Release) -> None:
        if isinstance(effect, Sum):
            self.held[effect.left] = f"({self.held[effect.left]}+{self.held.pop(effect.right)})"
        else:
            del self.held[effect.handle]


class Parcel(Struct, frozen=True):
    """An event on its way, with the fake tensor that goes with it."""

    side: Literal["shard", "worker"]
    to: int
    event: x.ShardEvent | x.WorkerEvent
    tensor: str | None = None


class World:
    """Workers and shards of one job, and a network that repeats and reorders what ``random`` likes."""

    def __init__(
        self,
        shares: list[tuple[int, ...]],
        shards: list[tuple[int, ...]],
        leaves: int,
        steps: int,
        random: Random,
        clips: bool = False,
        absent: frozenset[int] = frozenset(),
    ) -> None:
        self.leaves, self.steps, self.random, self.absent = leaves, steps, random, absent
        self.buckets = sum(len(owned) for owned in shards)
        self.owned = shards
        names = tuple(range(len(shares)))
        self.workers = [Worker(x.Assigned(1, share), self.buckets) for share in shares]
        self.versions = [0 for _ in shares]
        self.shards = [Shard(x.Rostered(1, names, 0), index) for index in range(len(shards))]
        self.holders = tuple(index for index, owned in enumerate(shards) if owned)
        self.clips = clips
        self.of_worker = [Tensors() for _ in shares]
        self.of_shard = [Tensors() for _ in shards]
        self.applied: dict[tuple[int, int], str | None] = {}
        self.norms: dict[int, set[tuple[tuple[int, float], ...]]] = {}
        self.ended: set[int] = set()
        self.declined: list[x.Decline | x.Disagree] = []
        self.network: list[Parcel] = []
        self.last: list[x.WritePart] = []

    def open(self) -> None:
        """All greet; the lead brings the initial weights."""
        for shard in range(len(self.shards)):
            for worker in range(len(self.workers)):
                self.tell(shard, x.Greeted(worker, (("torch", "2"),), b"model"))
            for bucket in self.owned[shard]:
                self.tell(shard, x.Initialized(0, bucket))

    def run(self) -> None:
        """Deliver until nothing is on its way."""
        for _ in range(200_000):
            if not self.network:
                return
            parcel = self.network.pop(self.random.randrange(len(self.network)))
            repeatable = isinstance(parcel.event, x.Contributed | x.Shown | x.NormsHeard | x.Pulled)
            if repeatable and self.random.random() < 0.2:
                self.network.append(parcel)
            if parcel.side == "shard":
                self.deliver(parcel)
            else:
                assert isinstance(parcel.event, x.Shown | x.OutstandingHeard)
                self.hear(parcel.to, parcel.event)
        raise AssertionError("the world does not come to rest")

    def deliver(self, parcel: Parcel) -> None:
        event = parcel.event
        if isinstance(event, x.Contributed):
            handle = self.of_shard[parcel.to].put(parcel.tensor)
            event = x.Contributed(event.worker, event.step, event.bucket, event.subtree, handle)
        assert not isinstance(event, x.WorkerEvent)
        self.tell(parcel.to, event)

    def tell(self, shard: int, event: x.ShardEvent) -> None:
        """Let a shard's machine have an event, and do what it wants."""
        effects = self.shards[shard].step(NOW, event)
        self.shards[shard].check()
        for effect in effects:
            self.do_shard(shard, effect)

    def do_shard(self, shard: int, effect: x.ShardEffect) -> None:
        match effect:
            case Sum() | Release():
                self.of_shard[shard].do(effect)
            case x.ApplyRoot():
                assert (effect.step, effect.bucket) not in self.applied, "a step was applied twice"
                self.applied[effect.step, effect.bucket] = self.of_shard[shard].get(effect.handle)
                self.norms.setdefault(effect.step, set()).add(effect.norms)
            case x.Decline() | x.Disagree():
                self.declined.append(effect)
            case _:
                self.answer(shard, effect)

    def answer(self, shard: int, effect: x.ShardEffect) -> None:
        match effect:
            case x.Open():
                self.tell(shard, x.Opened(self.owned[shard], (), self.leaves, self.clips, self.holders))
            case x.WelcomeWorker():
                if shard == len(self.shards) - 1:
                    self.begin(effect.worker)
            case x.Measure():
                self.tell(shard, x.Measured(effect.step, effect.bucket, float(effect.bucket + 1)))
            case x.TellNorms():
                for other in set(range(len(self.shards))) - {shard}:
                    self.send("shard", other, x.NormsHeard(shard, effect.step, effect.squares, effect.asks))
            case x.ShowBucket() | x.TellOutstanding():
                self.say(effect)
            case x.WritePart():
                self.last.append(effect)
                self.tell(shard, x.PartDurable(effect.step, effect.final))
            case x.End():
                self.ended.add(shard)

    def say(self, effect: x.ShowBucket | x.TellOutstanding) -> None:
        """To workers."""
        if isinstance(effect, x.ShowBucket):
            for worker in effect.workers:
                self.send("worker", worker, x.Shown(effect.version, effect.bucket))
            return
        for bucket, subtrees in effect.held:
            self.send("worker", effect.worker, x.OutstandingHeard(effect.step, bucket, subtrees))

    def send(
        self, side: Literal["shard", "worker"], to: int, event: x.ShardEvent | x.WorkerEvent, tensor: str | None = None
    ) -> None:
        self.network.append(Parcel(side, to, event, tensor))

    def begin(self, worker: int) -> None:
        """The worker's script goes on to its next step, or ends."""
        step = self.versions[worker]
        for shard in range(len(self.shards)):
            if step == self.steps:
                self.tell(shard, x.FinishAsked(worker, step, b"extra"))
            else:
                self.tell(shard, x.Began(worker, step, (1,) * self.leaves, b"lr"))
        if step < self.steps:
            self.hear(worker, x.StepBegan(step))

    def hear(self, worker: int, event: x.WorkerEvent) -> None:
        """Let a worker's machine have an event, and do what it wants."""
        effects = self.workers[worker].step(NOW, event)
        self.workers[worker].check()
        for effect in effects:
            match effect:
                case Sum() | Release():
                    self.of_worker[worker].do(effect)
                case x.Compute():
                    self.compute(worker, effect)
                case x.Push():
                    tensor = self.of_worker[worker].get(effect.handle)
                    told = x.Contributed(worker, effect.step, effect.bucket, effect.subtree, None)
                    self.send("shard", self.owner(effect.bucket), told, tensor)
                case x.InstallVersion():
                    self.versions[worker] = effect.version
                    self.begin(worker)
                case x.PullBuckets():
                    for bucket in effect.buckets:
                        pulled = x.Pulled(worker, effect.version, (bucket,))
                        self.send("shard", self.owner(bucket), pulled)

    def compute(self, worker: int, effect: x.Compute) -> None:
        assert effect.step == self.versions[worker], "a leaf on another version"
        for bucket in self.random.sample(range(self.buckets), self.buckets):
            handle = self.of_worker[worker].put(fixed(effect.leaf, 1, effect.step, self.absent))
            self.hear(worker, x.Computed(effect.step, effect.leaf, bucket, handle))

    def owner(self, bucket: int) -> int:
        return next(shard for shard, owned in enumerate(self.owned) if bucket in owned)

    def expected(self) -> dict[tuple[int, int], str | None]:
        """What every (step, bucket) must have been applied with."""
        return {
            (step, bucket): fixed(0, self.leaves, step, self.absent)
            for step in range(self.steps)
            for bucket in range(self.buckets)
        }


def tree(leaves: int) -> Iterator[Subtree]:
    """Every node of a tree."""
    size = 1
    while size <= leaves:
        yield from (Subtree(first, size) for first in range(0, leaves, size))
        size *= 2
