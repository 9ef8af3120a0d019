"""The router of a gateway: which replica computes which requests together, what is computed again elsewhere, and what is refused.

A request is so many *rows* (inputs along the first dimension). One that is larger than a batch is cut into *pieces*, each of
which goes into one batch; requests of one *group* (equal names, dtypes and inner shapes) may share a batch. Nothing here knows
what a tensor is.

Computing is pure, so a piece may be computed twice: the first answer counts. What a replica had in hand when it was lost goes to
another one. A request that was being computed when a process died is *suspect*: from then on it is computed alone, on a replica
that is reserved for it, and after a second death it is refused, so that it cannot end all replicas one by one.

Replicas are picked as the less loaded of two that are drawn (M. Mitzenmacher, The Power of Two Choices in Randomized Load
Balancing, 2001).
"""

import heapq
from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from random import Random

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.serving.events import (
    Abandoned,
    Answer,
    Arrived,
    Broke,
    Computed,
    Declined,
    Died,
    Dispatch,
    FleetTold,
    Full,
    Heard,
    Killed,
    Opened,
    Piece,
    Refusal,
    Refuse,
    Rejected,
    ReplicaId,
    RouterEffect,
    RouterEvent,
    TooLate,
)
from dmi_protocol.serving.queue import PieceQueue, Waiting

DEATHS = 2
"""So many processes a request may end."""


class RouterSettings(Struct, frozen=True):
    """``max_batch`` is in rows. A request waits for others only while every replica is busy, and at most ``max_wait_ms``. With
    ``exact`` each request is computed alone. A replica computes as many batches at once as it has ``stages``. A request is
    refused when so many processes have died of it."""

    max_batch: int
    max_wait_ms: int
    exact: bool = False
    stages: int = 1
    deaths: int = DEATHS


class _Request:
    """One that is not answered yet."""

    __slots__ = (
        *("count", "deaths", "done", "flying", "group", "pieces", "rest"),
        *("since", "size_bytes", "until", "versions", "waiting"),
    )

    def __init__(self, event: Arrived, now: Instant, group: Hashable, most: int) -> None:
        self.since = now
        self.until = event.until
        self.versions = event.versions
        self.size_bytes = event.size_bytes
        self.group = group
        self.count = max(1, -(-event.rows // most))
        """How many pieces it has."""
        self.rest = _cut(event.request, event.rows, most)
        """Those that are not cut yet: a large request would take all time and memory at once."""
        self.pieces: list[Piece] = []
        self.waiting: dict[int, Waiting] = {}
        """By piece: those in the queue."""
        self.flying: Counter[int] = Counter()
        """By piece: in how many batches it is."""
        self.done: dict[int, str] = {}
        """By piece: the version that computed it."""
        self.deaths = 0


class _Replica:
    """One that there is. ``batches`` are in the order in which it computes them."""

    __slots__ = ("batches", "heard_at", "is_leaving", "is_open", "is_reserved", "is_silent", "rows", "said", "versions")

    def __init__(self, now: Instant) -> None:
        self.is_open = False
        self.is_silent = False
        """It was not heard for long; who waits for it waits for others, too."""
        self.is_leaving = False
        """It is of the fleet no more, and may finish what it has."""
        self.is_reserved = False
        """It computes suspect requests, and nothing beside them."""
        self.heard_at = now
        self.versions: frozenset[str] = frozenset()
        """What it has in memory."""
        self.batches: dict[int, tuple[Piece, ...]] = {}
        self.rows = 0
        """Of its batches."""
        self.said = 0
        """The rows that it had to compute for everybody, as it said last."""

    @property
    def is_able(self) -> bool:
        return self.is_open and not self.is_silent and not self.is_leaving

    def has_room(self, stages: int) -> bool:
        return self.is_able and not self.is_reserved and len(self.batches) < limits.REPLICA_BATCHES * stages

    def version_for(self, versions: Sequence[str]) -> str | None:
        """The first of these that it has."""
        return next((version for version in versions if version in self.versions), None)

    @property
    def load(self) -> int:
        return max(self.rows, self.said)

    @property
    def silent_at(self) -> Instant | None:
        is_awaited = self.batches and self.is_open and not self.is_silent
        return after(self.heard_at, limits.REPLICA_SILENT_MS) if is_awaited else None


class Router:
    """See the module, and ``machine.py`` for what the shell must do: ``step`` with every event, ``tick`` at the ``deadline``."""

    def __init__(self, settings: RouterSettings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._requests: dict[int, _Request] = {}
        self._size_bytes = 0
        self._replicas: dict[ReplicaId, _Replica] = {}
        self._queues: dict[tuple[str, ...], PieceQueue] = {}
        """By the versions that may compute what waits there."""
        self._suspects: deque[Waiting] = deque()
        """Pieces of suspect requests."""
        self._ends: list[tuple[Instant, int]] = []
        """A heap of the requests' ends; some are answered already."""
        self._next_batch = 1
        self._effects: list[RouterEffect] = []

    @property
    def waiting(self) -> int:
        """How many requests are not answered yet."""
        return len(self._requests)

    @property
    def able(self) -> int:
        """How many replicas could compute something."""
        return sum(replica.is_able for replica in self._replicas.values())

    @property
    def known(self) -> Collection[ReplicaId]:
        """Those that may still say something that counts."""
        return self._replicas.keys()

    @property
    def versions(self) -> frozenset[str]:
        """Those that somebody has who could compute something."""
        return frozenset().union(*(replica.versions for replica in self._replicas.values() if replica.is_able))

    def batch(self, replica: ReplicaId, batch: int) -> tuple[Piece, ...]:
        """What a replica has in hand under this number; nothing, where it was given up."""
        found = self._replicas.get(replica)
        return () if found is None else found.batches.get(batch, ())

    def step(self, now: Instant, event: RouterEvent) -> list[RouterEffect]:
        """Take one event in and give the work that follows from it."""
        effects = self._effects = []
        match event:
            case Arrived():
                self._arrive(now, event)
            case Computed():
                self._compute(now, event)
            case Abandoned(request):
                self._end(request)
            case FleetTold(replicas):
                self._tell(now, replicas)
            case _:
                self._happen(now, event)
        self._go_on(now)
        return effects

    def tick(self, now: Instant) -> list[RouterEffect]:
        """What is due."""
        effects = self._effects = []
        while self._ends and self._ends[0][0] <= now:
            _, request = heapq.heappop(self._ends)
            if request in self._requests:
                self._refuse(request, TooLate(has_replica=self.able > 0))
        for replica in self._replicas.values():
            due = replica.silent_at
            if due is not None and now >= due:
                replica.is_silent = True
                self._again([piece for pieces in replica.batches.values() for piece in pieces])
        self._go_on(now)
        return effects

    def deadline(self) -> Instant | None:
        """When ``tick`` is wanted."""
        while self._ends and self._ends[0][1] not in self._requests:
            heapq.heappop(self._ends)
        return earliest(
            self._ends[0][0] if self._ends else None,
            *[self._due(versions, queue) for versions, queue in self._queues.items()],
            *[replica.silent_at for replica in self._replicas.values()],
        )

    def _due(self, versions: tuple[str, ...], queue: PieceQueue) -> Instant | None:
        head = queue.head()
        is_ready = head is not None and any(
            replica.has_room(self._settings.stages) and replica.version_for(versions)
            for replica in self._replicas.values()
        )
        return after(head.since, self._settings.max_wait_ms) if head is not None and is_ready else None

    def check(self) -> None:
        """Assert the invariants."""
        for queue in self._queues.values():
            queue.check()
        assert self._size_bytes == sum(request.size_bytes for request in self._requests.values())
        flying = Counter[tuple[int, int]]()
        for replica in self._replicas.values():
            pieces = [piece for batch in replica.batches.values() for piece in batch]
            flying.update((piece.request, piece.number) for piece in pieces)
            assert replica.rows == sum(piece.weight for piece in pieces)
            assert len(replica.batches) <= limits.REPLICA_BATCHES * self._settings.stages
        for name, request in self._requests.items():
            for piece in request.pieces:
                assert request.flying[piece.number] == flying[name, piece.number]
                is_somewhere = (
                    request.flying[piece.number] or piece.number in request.done.keys() | request.waiting.keys()
                )
                assert is_somewhere, f"{piece} is nowhere"

    # Requests

    def _arrive(self, now: Instant, event: Arrived) -> None:
        is_full = len(self._requests) >= limits.GATEWAY_REQUESTS
        if is_full or self._size_bytes + event.size_bytes > limits.GATEWAY_BYTES:
            self._effects.append(Refuse(event.request, Full()))
            return
        is_alone = self._settings.exact or event.group is None
        group = event.request if is_alone else event.group
        request = _Request(event, now, group, self._settings.max_batch)
        self._requests[event.request] = request
        self._size_bytes += event.size_bytes
        heapq.heappush(self._ends, (event.until, event.request))
        self._cut_more(request)

    def _cut_more(self, request: _Request) -> None:
        """So that enough of it waits."""
        while len(request.waiting) < limits.PIECES_AHEAD and len(request.pieces) < request.count:
            request.pieces.append(next(request.rest))
            self._enqueue(request, request.pieces[-1])

    def _end(self, name: int) -> None:
        """Whatever waits of it is not computed any more; what is computed already is dropped when it comes."""
        request = self._requests.pop(name, None)
        if request is not None:
            self._size_bytes -= request.size_bytes
            for index in list(request.waiting):
                self._dequeue(request, index)

    def _refuse(self, name: int, why: Refusal) -> None:
        self._end(name)
        self._effects.append(Refuse(name, why))

    def _compute(self, now: Instant, event: Computed) -> None:
        rejected = dict(event.rejected)
        for place, piece in enumerate(self._take_back(event.replica, event.batch)):
            request = self._requests.get(piece.request)
            if request is None:
                continue
            if place in rejected:
                self._refuse(piece.request, Rejected(rejected[place]))
                continue
            self._dequeue(request, piece.number)
            request.done[piece.number] = event.version
            if len(request.done) == request.count:
                self._complete(request, event.version)

    def _complete(self, request: _Request, version: str) -> None:
        """No answer mixes two versions: what another one has computed is computed again."""
        name = request.pieces[0].request
        others = [piece for piece in request.pieces if request.done[piece.number] != version]
        if not others:
            self._end(name)
            self._effects.append(Answer(name, version))
        for piece in others:
            del request.done[piece.number]
            if not request.flying[piece.number]:
                self._enqueue(request, piece)

    # The queue

    def _enqueue(self, request: _Request, piece: Piece, *, first: bool = False) -> None:
        waiting = request.waiting[piece.number] = Waiting(piece, request.group, request.since)
        if request.deaths:
            self._suspects.append(waiting)
        else:
            self._queues.setdefault(request.versions, PieceQueue()).add(waiting, first=first)

    def _dequeue(self, request: _Request, index: int) -> None:
        waiting = request.waiting.pop(index, None)
        if waiting is None:
            return
        if waiting in self._suspects:
            self._suspects.remove(waiting)
        else:
            self._queues[request.versions].take(waiting)

    def _again(self, pieces: Iterable[Piece]) -> None:
        """To another replica, before all that came later."""
        for piece in reversed(list(pieces)):
            request = self._requests.get(piece.request)
            if request is not None and piece.number not in request.done and piece.number not in request.waiting:
                self._enqueue(request, piece, first=True)

    def _blame(self, pieces: Sequence[Piece]) -> None:
        """A process died while it computed these."""
        for name in dict.fromkeys(piece.request for piece in pieces):
            request = self._requests.get(name)
            if request is None:
                continue
            for index in list(request.waiting):
                self._dequeue(request, index)
            request.deaths += 1
            if request.deaths >= self._settings.deaths:
                self._refuse(name, Killed(request.deaths))
                continue
            self._again(piece for piece in request.pieces if not request.flying[piece.number])

    # Replicas

    def _happen(self, now: Instant, event: RouterEvent) -> None:
        """To a replica."""
        assert isinstance(event, Opened | Broke | Heard | Died | Declined)
        replica = self._replicas.get(event.replica)
        if replica is None:
            return
        match event:
            case Opened():
                replica.is_open, replica.is_silent, replica.heard_at = True, False, now
            case Heard(_, waiting, versions):
                replica.said, replica.heard_at, replica.is_silent = waiting, now, False
                replica.versions = replica.versions if versions is None else versions
            case Broke():
                self._lose(replica)
            case Died(_, batch):
                self._blame(self._take_back(event.replica, batch))
            case Declined(_, batch):
                self._again(self._take_back(event.replica, batch))
        if replica.is_leaving and not replica.batches:
            del self._replicas[event.replica]

    def _tell(self, now: Instant, replicas: frozenset[ReplicaId]) -> None:
        for name in sorted(replicas):
            self._replicas.setdefault(name, _Replica(now)).is_leaving = False
        for name in [name for name in self._replicas if name not in replicas]:
            self._replicas[name].is_leaving = True
            if not self._replicas[name].batches:
                del self._replicas[name]

    def _lose(self, replica: _Replica) -> None:
        """Of what it had in hand it computed the first. One that was leaving has ended as it should."""
        batches = list(replica.batches.items())
        for batch, _ in batches:
            self._drop(replica, batch)
        is_to_blame = not replica.is_leaving
        replica.is_open = replica.is_reserved = False
        if batches and is_to_blame:
            self._blame(batches.pop(0)[1])
        self._again(piece for _, pieces in batches for piece in pieces)

    def _take_back(self, name: ReplicaId, batch: int) -> tuple[Piece, ...]:
        """The pieces of a batch that a replica has done with; none where it was given up meanwhile."""
        replica = self._replicas.get(name)
        return self._drop(replica, batch) if replica is not None and batch in replica.batches else ()

    def _drop(self, replica: _Replica, batch: int) -> tuple[Piece, ...]:
        pieces = replica.batches.pop(batch)
        replica.rows -= sum(piece.weight for piece in pieces)
        replica.is_reserved = replica.is_reserved and bool(replica.batches)
        for piece in pieces:
            if (request := self._requests.get(piece.request)) is not None:
                request.flying[piece.number] -= 1
        return pieces

    # Who computes what

    def _go_on(self, now: Instant) -> None:
        """Hand out whatever can be computed now."""
        self._go_on_with_suspects()
        for versions, queue in list(self._queues.items()):
            while self._hand_out(now, versions, queue):
                pass
            if queue.head() is None:
                del self._queues[versions]

    def _hand_out(self, now: Instant, versions: tuple[str, ...], queue: PieceQueue) -> bool:
        """One batch of those that wait, if somebody can be given one now."""
        head = queue.head()
        if head is None:
            return False
        stages = self._settings.stages
        able = [n for n, each in self._replicas.items() if each.has_room(stages) and each.version_for(versions)]
        idle = [name for name in able if len(self._replicas[name].batches) < stages]
        is_due = now >= after(head.since, self._settings.max_wait_ms)
        is_full = queue.rows(head.group) >= self._settings.max_batch
        if not idle and not (able and (is_due or is_full)):
            return False
        self._dispatch(self._less_loaded(idle or able), queue.batch(head.group, self._settings.max_batch))
        return True

    def _go_on_with_suspects(self) -> None:
        """Each alone. Up to half of the replicas are kept for them, as soon as they have nothing else in hand."""
        able = [name for name, replica in self._replicas.items() if replica.is_able and self._suspect_for(replica)]
        for replica in self._replicas.values():
            if replica.is_reserved and not replica.batches and not self._suspect_for(replica):
                replica.is_reserved = False
        reserved = [name for name in able if self._replicas[name].is_reserved]
        wanted = min(len(self._suspects), max(1, len(able) // 2) if able else 0)
        free = sorted((n for n in able if n not in reserved), key=lambda name: self._replicas[name].load)
        for name in free[: max(0, wanted - len(reserved))]:
            self._replicas[name].is_reserved = True
            reserved.append(name)
        for name in reserved:
            replica = self._replicas[name]
            suspect = self._suspect_for(replica) if not replica.batches else None
            if suspect is not None:
                self._suspects.remove(suspect)
                self._dispatch(name, [suspect.piece])
            elif not replica.batches:
                replica.is_reserved = False

    def _suspect_for(self, replica: _Replica) -> Waiting | None:
        """The first suspect piece that it could compute."""
        return next((w for w in self._suspects if replica.version_for(self._requests[w.piece.request].versions)), None)

    def _less_loaded(self, names: Sequence[ReplicaId]) -> ReplicaId:
        two = names if len(names) <= 2 else self._random.sample(names, 2)
        return min(two, key=lambda name: (self._replicas[name].load, self._random.random()))

    def _dispatch(self, name: ReplicaId, pieces: list[Piece]) -> None:
        replica, until = self._replicas[name], Instant(0)
        version = replica.version_for(self._requests[pieces[0].request].versions)
        assert version is not None
        for piece in pieces:
            request = self._requests[piece.request]
            request.waiting.pop(piece.number, None)
            request.flying[piece.number] += 1
            until = max(until, request.until)
        for request in {piece.request: self._requests[piece.request] for piece in pieces}.values():
            self._cut_more(request)
        batch, self._next_batch = self._next_batch, self._next_batch + 1
        replica.batches[batch] = tuple(pieces)
        replica.rows += sum(piece.weight for piece in pieces)
        self._effects.append(Dispatch(name, batch, version, tuple(pieces), until))


def _cut(request: int, rows: int, most: int) -> Iterator[Piece]:
    """A request without rows is one piece, too."""
    for number, first in enumerate(range(0, max(rows, 1), most)):
        yield Piece(request, number, first, min(most, rows - first))
