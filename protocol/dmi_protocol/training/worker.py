"""The worker's machine: which leaves to compute, which sums to push, when a step is complete everywhere.

The sums of a step are kept until the next version is whole, so that they can be pushed again to whoever needs them.
A leaf that falls to this worker later (its worker was lost) is handed out in the same step, on the same version.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from dmi_protocol.errors import LocalProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.training.exchange import (
    Assigned,
    Compute,
    Computed,
    InstallVersion,
    OutstandingHeard,
    PullBuckets,
    Push,
    Shown,
    StepBegan,
    Waited,
    WorkerEffect,
    WorkerEvent,
)
from dmi_protocol.training.step import Gathering, Handle, Release, Subtree, cover


class _Share:
    """Leaves that were given to this worker together, and what came of them, bucket by bucket."""

    def __init__(self, leaves: frozenset[int], buckets: int) -> None:
        self.tops = cover(leaves)
        self.gatherings = [Gathering(self.tops) for _ in range(buckets)]
        self.pushed: list[dict[Subtree, Handle | None]] = [{} for _ in range(buckets)]


def _has_come(subtree: Subtree, held: Iterable[Subtree]) -> bool:
    there = tuple(held)
    parts = sum(part.leaves for part in there if subtree.contains(part))
    return parts == subtree.leaves or any(whole.contains(subtree) for whole in there)


class Worker:
    """Decides for one worker. ``buckets`` is the number of buckets of the whole layout."""

    def __init__(self, assigned: Assigned, buckets: int) -> None:
        self._assigned = assigned
        self._buckets = buckets
        self._step: int | None = None
        self._given: frozenset[int] = frozenset()
        self._shares: list[_Share] = []
        self._version = 0
        self._shown: dict[int, set[int]] = {}

    @property
    def current(self) -> int | None:
        """The step in flight; None between steps."""
        return self._step

    def missing(self) -> tuple[int, ...]:
        """The buckets of the next version that were not shown yet."""
        shown = self._shown.get(self._version + 1, set())
        return tuple(bucket for bucket in range(self._buckets) if bucket not in shown)

    def deadline(self) -> Instant | None:
        """The worker waits for its servers; patience is the shell's."""
        return None

    def step(self, now: Instant, event: WorkerEvent) -> list[WorkerEffect]:
        """Take one event in and give the work that follows from it; ``LocalProtocolError`` when the shell erred."""
        match event:
            case Assigned():
                return self._assign(event)
            case StepBegan():
                return self._begin(event)
            case Computed():
                return self._computed(event)
            case Shown():
                return self._is_shown(event)
            case OutstandingHeard():
                return self._push_again(event)
            case Waited():
                missing = self.missing()
                return [PullBuckets(self._step + 1, missing)] if self._step is not None and missing else []

    def _assign(self, event: Assigned) -> list[WorkerEffect]:
        """A new generation: who is a primary now has not all that the one before had."""
        if event.generation <= self._assigned.generation:
            return []
        self._assigned = event
        return [*self._again(event.moved), *self._give()]

    def _begin(self, event: StepBegan) -> list[WorkerEffect]:
        if self._step is not None:
            raise LocalProtocolError(f"step {event.step} begins while step {self._step} is in flight")
        self._step = self._version = event.step
        if event.leaves is not None:
            self._assigned = replace(self._assigned, leaves=event.leaves)
        # a joiner was shown what others have made while it greeted
        self._shown = {version: shown for version, shown in self._shown.items() if version > event.step}
        self._given = frozenset()
        return [*self._give(), *self._complete()]

    def _give(self) -> list[WorkerEffect]:
        """Hand out what is ours and was not handed out yet."""
        new = frozenset(self._assigned.leaves) - self._given
        if self._step is None or not new:
            return []
        self._given |= new
        self._shares.append(_Share(new, self._buckets))
        return [Compute(self._step, leaf) for leaf in sorted(new)]

    def _computed(self, event: Computed) -> list[WorkerEffect]:
        if event.step != self._step or event.leaf not in self._given:
            return [] if event.handle is None else [Release(event.handle)]
        leaf = Subtree(event.leaf, 1)
        share = next(share for share in self._shares if any(top.contains(leaf) for top in share.tops))
        gathering, pushed = share.gatherings[event.bucket], share.pushed[event.bucket]
        work: list[WorkerEffect] = list(gathering.add(leaf, event.handle))
        for subtree, handle in gathering.sums.items():
            if subtree in share.tops and subtree not in pushed:
                pushed[subtree] = handle
                work.append(self._push(event.bucket, subtree, handle))
        return work

    def _push(self, bucket: int, subtree: Subtree, handle: Handle | None) -> Push:
        assert self._step is not None
        return Push(self._step, bucket, subtree, handle)

    def _is_shown(self, event: Shown) -> list[WorkerEffect]:
        """Note what is whole. It has the same bits in every generation, and whoever may be promoted has it.

        A worker with few leaves may be behind: a fast server shows the version after next while a slow one still owes
        the next. More than that cannot be; see ``Shard._may_apply``.
        """
        ahead = event.version - self._version
        if not 1 <= ahead <= 2:
            return []
        self._shown.setdefault(event.version, set()).add(event.bucket)
        return self._complete()

    def _complete(self) -> list[WorkerEffect]:
        """All buckets of the next version are here: the step is complete everywhere."""
        if self._step is None or self.missing():
            return []
        self._step = None
        self._version += 1
        del self._shown[self._version]
        kept = [handle for share in self._shares for held in share.gatherings for handle in held.sums.values()]
        self._shares.clear()
        return [*(Release(handle) for handle in kept if handle is not None), InstallVersion(self._version)]

    def _again(self, buckets: Iterable[int]) -> list[WorkerEffect]:
        """What was not shown of ``buckets`` may have been lost on the way there or on the way back."""
        missing = tuple(sorted(set(buckets) & set(self.missing())))
        if self._step is None or not missing:
            return []
        work: list[WorkerEffect] = [
            self._push(bucket, subtree, handle)
            for share in self._shares
            for bucket in missing
            for subtree, handle in share.pushed[bucket].items()
        ]
        return [*work, PullBuckets(self._step + 1, missing)]

    def _push_again(self, event: OutstandingHeard) -> list[WorkerEffect]:
        """What we have pushed and did not get there. (Sums that wait there are parts of ours, or ours of them.)"""
        if event.step != self._step:
            return []
        return [
            self._push(event.bucket, subtree, handle)
            for share in self._shares
            for subtree, handle in share.pushed[event.bucket].items()
            if not _has_come(subtree, event.held)
        ]

    def check(self) -> None:
        """Assert the invariants."""
        for share in self._shares:
            for gathering in share.gatherings:
                gathering.check()
        tops = [top for share in self._shares for top in share.tops]
        leaves = [leaf for top in tops for leaf in range(top.first, top.first + top.leaves)]
        assert len(leaves) == len(set(leaves)), "a leaf was handed out twice"
        assert all(1 <= version - self._version <= 2 for version in self._shown), "an old version is remembered"
        assert self._step is not None or not self._shares, "sums are kept although the next version is whole"
