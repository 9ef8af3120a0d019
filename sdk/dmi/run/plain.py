"""A plain run: a mesh of one. All leaves are computed here, and the one shard holds everything."""

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from torch import Tensor

from dmi.errors import UsageError
from dmi.run.exchange import Begun
from dmi_protocol.training.layout import Definition
from dmi_protocol.training.step import Gathering, Handle, Subtree, Sum
from dmi_tensor.buckets import Buckets, Pool
from dmi_tensor.checkpoint import Model, part_of
from dmi_tensor.shard import Shard
from dmi_tensor.tree_sum import DisagreementError, Share, add


class PlainExchange:
    """The exchange of a process that is alone. ``shards`` splits the arithmetic as servers would."""

    worker = 0
    is_lead = True
    leaves: int | None = None
    threads: int | None = None

    def __init__(self, shards: int = 1) -> None:
        self._count = shards
        self._pool = Pool()

    is_joiner = False

    def welcome(self) -> None:
        """Nobody is there before a plain run."""

    def resume(self) -> bytes | None:
        """A plain run always begins."""
        return None

    def open(self, definition: Definition, buckets: Buckets, fingerprint: Sequence[tuple[str, str]], kept: int) -> int:
        """See ``Exchange.open``."""
        self._definition = definition
        self._buckets = buckets
        self._shards = [Shard(definition, index, self._count) for index in range(self._count)]
        self._owner = {bucket: shard for shard in self._shards for bucket in (*shard.buckets, *shard.frozen)}
        for bucket, shard in self._owner.items():
            if buckets.layout.buckets[bucket].kind != "metrics":
                shard.initialize(bucket, buckets.bucket(bucket))
        self._step = 0
        return 0

    def begin(self, begun: Begun, extra: Callable[[], bytes]) -> None:
        """See ``Exchange.begin``."""
        root = Subtree(0, len(begun.leaf_sizes))
        live = range(self._buckets.layout.live)
        self._step, self._hyper, self._root = begun.step, begun.hyper, root
        self._gatherings = {bucket: Gathering([root]) for bucket in live}
        self._shares: dict[Handle, Share] = {}
        self._next = iter(range(len(begun.leaf_sizes)))
        self._named = 0

    def expected_leaves(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self._definition.leaves))

    def next_leaf(self) -> int | None:
        """See ``Exchange.next_leaf``."""
        leaf = next(self._next, None)
        if leaf is None:
            self._apply()
        return leaf

    def contribute(self, leaf: int, shares: Mapping[int, Share]) -> None:
        """See ``Exchange.contribute``."""
        for bucket, gathering in self._gatherings.items():
            share, handle = shares.get(bucket), None
            if share is not None:
                self._named += 1
                handle = Handle(self._named)
                self._shares[handle] = share
            for work in gathering.add(Subtree(leaf, 1), handle):
                if isinstance(work, Sum):
                    self._sum(bucket, work)

    def _sum(self, bucket: int, work: Sum) -> None:
        left, right = self._shares[work.left], self._shares.pop(work.right)
        try:
            add(self._buckets.layout.buckets[bucket], left, right)
        except DisagreementError as error:
            raise UsageError(f"the leaves of a step disagree about the buffer {error}: make it a function of the step, "
                             "or keep it out of the module") from error  # fmt: skip
        if right.tensor is not None:
            self._pool.give(right.tensor)

    def _apply(self) -> None:
        roots = {}
        for bucket, gathering in self._gatherings.items():
            handle = gathering.sums[self._root]
            roots[bucket] = None if handle is None else self._shares.pop(handle)
        norms: list[tuple[int, float]] = []
        if self._definition.clip_norm is not None:
            norms = [(bucket, self._owner[bucket].square(bucket, root)) for bucket, root in roots.items()]
        for bucket, root in roots.items():
            self._owner[bucket].apply(self._step, bucket, root, self._hyper, norms)
        told = roots[self._buckets.layout.metrics]
        self._metrics = self._owner[self._buckets.layout.metrics].metrics(told)
        self._value = b"" if told is None else told.value
        for root in roots.values():
            if root is not None and root.tensor is not None:
                self._pool.give(root.tensor)

    def metrics(self) -> Mapping[str, float]:
        """See ``Exchange.metrics``."""
        return self._metrics

    def value(self) -> bytes:
        """See ``Exchange.value``."""
        return self._value

    def begin_again(self, why: str) -> NoReturn:
        """Whoever is alone leads all the time."""
        raise AssertionError(why)

    def install(self) -> None:
        """See ``Exchange.install``."""
        self._step += 1
        for bucket in range(self._buckets.layout.metrics):
            if not self._owner[bucket].is_as_before(bucket, self._step):
                self._buckets.bucket(bucket).copy_(self._owner[bucket].read(bucket, self._step))

    def take(self, bucket: int) -> Share:
        """Room for what a leaf gives to ``bucket``: a recycled tensor with zeros between the segments."""
        found = self._buckets.layout.buckets[bucket]
        return Share(self._pool.take(found), [0.0] * len(found.segments), {})

    def progress(self, steps: int | None, samples: int, loss: float | None) -> None:
        """Nobody watches."""

    def checkpoint(self, step: int, extra: Callable[[], bytes]) -> None:
        """A plain run keeps no checkpoints: it starts again from step 0."""

    def checkpointed(self, step: int, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Nobody follows a plain run."""

    def publish(self, name: str, step: int, tensors: Mapping[str, Tensor], model: str, inputs: Sequence[str]) -> None:
        """A plain run has nobody to publish to."""

    def optimizer_state(self) -> dict[str, object]:
        """See ``Exchange.optimizer_state``."""
        parts = [part_of(shard, i, self._count, self._step, b"") for i, shard in enumerate(self._shards)]
        return Model(parts).optimizer_state()

    def close(self, step: int, extra: bytes, kept: tuple[tuple[str, str], ...]) -> None:
        """Nobody waits."""
