"""The blobs of jobs on this host's disk: those that it is to keep for others, those that are under way to it, and those
that nothing speaks of any more."""

from collections import Counter
from collections.abc import Collection, Iterator, Set

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command, HoldBlob
from dmi_protocol.cluster.holding import Holding
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.effects import DropBlob, Effect, FetchBlob
from dmi_protocol.identity import BlobHash, NodeId, RequestId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.any_job import AnyJob


class _Wish(Struct, frozen=True):
    """This host is to keep a copy of ``blob``, and tells ``fact`` when it does."""

    blob: BlobHash
    fact: Command


class Keeping:
    """Of the node ``me``. Whatever cannot be fetched is tried again: who has it may be away."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._wishes: dict[RequestId, _Wish] = {}
        """Under way to this host, by what will be told. The last checkpoint of a job and its final one may be the same
        bytes."""
        self._kept: frozenset[BlobHash] = frozenset()
        """What jobs keep beside their files, on this host's disk or under way to it."""
        self._pinned: dict[BlobHash, Instant] = {}
        """Until when blobs stay that the state does not speak of yet."""
        self._under_way: Counter[BlobHash] = Counter()
        """Fetches whose end was not heard of yet."""
        self._again: dict[BlobHash, Instant] = {}
        """When a fetch that failed is tried again."""

    def fetch(self, state: ClusterState, blob: BlobHash) -> FetchBlob:
        """From all others who are said to have it."""
        self._under_way[blob] += 1
        self._again.pop(blob, None)
        return FetchBlob(
            blob, tuple(node for node in _holders(state, blob) if node != self._me and node in state.members)
        )

    def deadline(self) -> Instant | None:
        """When something is fetched again, or need not stay any longer."""
        return earliest(*self._again.values(), *self._pinned.values())

    def pin(self, now: Instant, blob: BlobHash) -> None:
        """It is here, or will be, and stays for a while."""
        self._pinned[blob] = after(now, limits.PIN_MS)

    def unpin(self, now: Instant) -> bool:
        """Those whose time is over are as others are; were there any?"""
        over = [blob for blob, until in self._pinned.items() if now >= until]
        for blob in over:
            del self._pinned[blob]
        return bool(over)

    def again(self, now: Instant, state: ClusterState, awaited: Collection[BlobHash]) -> list[Effect]:
        """What is due. Roles wait for ``awaited``."""
        due = sorted(blob for blob, at in self._again.items() if now >= at)
        wanted = {*awaited, *(wish.blob for wish in self._wishes.values())}
        for blob in due:
            del self._again[blob]
        return [self.fetch(state, blob) for blob in due if blob in wanted]

    def missing(self, now: Instant, blob: BlobHash) -> None:
        """Nobody gives it now."""
        self._heard_of(blob)
        self._again[blob] = after(now, limits.FETCH_AGAIN_MS)

    def arrived(self, blob: BlobHash) -> list[Command]:
        """It is here: tell that it is kept."""
        self._heard_of(blob)
        self._again.pop(blob, None)
        return [wish.fact for wish in self._wishes.values() if wish.blob == blob]

    def _heard_of(self, blob: BlobHash) -> None:
        self._under_way[blob] -= 1
        if self._under_way[blob] <= 0:
            del self._under_way[blob]

    def reconcile(self, state: ClusterState) -> list[Effect]:
        """Fetch what this host is to keep, and has not."""
        wishes = [wish for owner in state.holdings() if owner.copies for wish in self._copies(owner)]
        wishes += [wish for job in state.jobs.values() if job.goes_on for wish in self._parts(job)]
        due = {wish.fact.request: wish for wish in wishes}
        new = sorted(due.keys() - self._wishes.keys())
        self._wishes = due
        return [self.fetch(state, due[request].blob) for request in new]

    def _copies(self, owner: Holding) -> Iterator[_Wish]:
        for blob, node in owner.copies.items():
            if node == self._me:
                request = RequestId(f"{owner.id}/hold-{blob}-{owner.asked.get(blob, 0)}-{node}")
                yield _Wish(blob, HoldBlob(request, owner.id, blob, node))

    def _parts(self, job: AnyJob) -> Iterator[_Wish]:
        for blob, fact in kind_of(job).processes.keeps(job, self._me):
            yield _Wish(blob, fact)

    def drop(self, told: Set[BlobHash], here: Set[BlobHash], needed: Set[BlobHash]) -> list[Effect]:
        """What is here and what nothing speaks of any more. The state speaks of those that are ``told``,
        and says that some are ``here``; roles still have ``needed`` ones.

        What somebody else is said to have now may have been promised here a moment ago, so all that the state speaks of
        stays; and so does what is on its way, lest it be told to be here when it was dropped meanwhile.
        """
        wished = {wish.blob for wish in self._wishes.values() if wish.blob in told}
        held = self._kept | needed | here | wished | self._pinned.keys()
        gone = held - needed - told - self._under_way.keys() - self._pinned.keys()
        self._kept = frozenset(held - gone)
        return [DropBlob(blob) for blob in sorted(gone)]


def _holders(state: ClusterState, blob: BlobHash) -> tuple[NodeId, ...]:
    found = [node for job in state.jobs.values() if job.bundle == blob for node in job.holders]
    found += [node for owner in state.holdings() for kept, nodes in owner.kept() if kept == blob for node in nodes]
    return tuple(dict.fromkeys(found))
