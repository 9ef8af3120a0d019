"""A gateway's router in virtual time: clients that ask, and replicas that are slow, die, fall silent and change their version."""

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

from msgspec import Struct, field

from dmi_protocol.instant import Instant
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
    Heard,
    Opened,
    Piece,
    Refusal,
    Refuse,
    ReplicaId,
    RouterEffect,
    RouterEvent,
)
from dmi_protocol.serving.router import Router, RouterSettings

BEAT_MS = 500
RTT_MS = 1


class Client(Struct):
    """A request, and what became of it. ``computed`` has the version by which each piece was computed last."""

    arrived: Arrived
    is_poison: bool = False
    is_bad: bool = False
    is_abandoned: bool = False
    computed: dict[int, str] = field(default_factory=dict)
    answer: Answer | None = None
    refusal: Refusal | None = None
    at: int = 0


class Replica(Struct):
    """``line`` has the batches that it was given, in order. One that ``is_mute`` computes, and nobody hears of it."""

    name: ReplicaId
    version: str = "m:1"
    row_ms: float = 1.0
    line: list[tuple[int, str, tuple[Piece, ...]]] = field(default_factory=list)
    is_busy: bool = False
    is_alive: bool = True
    is_mute: bool = False
    life: int = 0
    batches: list[tuple[Piece, ...]] = field(default_factory=list)
    """All that it began to compute."""


class World:
    """``kills`` says whether a poisonous request ends the replica's whole process, or a child of it alone."""

    def __init__(self, seed: int, settings: RouterSettings, replicas: int, *, kills_whole: bool = False) -> None:
        self.chance = Random(seed)
        self.router = Router(settings, Random(seed + 1))
        self.now = 0
        self.deaths = Counter[int]()
        """By request: the processes that it ended."""
        self.clients: dict[int, Client] = {}
        self.replicas: dict[ReplicaId, Replica] = {}
        self._kills_whole = kills_whole
        self.versions: tuple[str, ...] = ("m:1",)
        """What any request may be computed by, the newest first."""
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        for n in range(replicas):
            self.join(f"r{n}")

    # Time

    def later(self, delay_ms: int, what: Callable[[], None]) -> None:
        """Do something then."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._count, what))

    def run(self, until_ms: int) -> None:
        """Whatever happens until then, in order."""
        while True:
            due = self.router.deadline()
            next_at = self._queue[0][0] if self._queue else None
            if due is not None and due <= until_ms and (next_at is None or due <= next_at):
                self.now = max(self.now, due)
                self._do(self.router.tick(Instant(self.now)))
                later = self.router.deadline()
                assert later is None or later > self.now, "a deadline that is not met for ever"
            elif next_at is not None and next_at <= until_ms:
                self.now, _, what = heapq.heappop(self._queue)
                what()
            else:
                self.now = until_ms
                return
            self.router.check()

    def tell(self, event: RouterEvent) -> None:
        """It happens now."""
        self._do(self.router.step(Instant(self.now), event))
        self.router.check()

    def _do(self, effects: list[RouterEffect]) -> None:
        for effect in effects:
            match effect:
                case Dispatch(replica, batch, version, pieces):
                    self.later(RTT_MS, lambda r=replica, b=batch, v=version, p=pieces: self._given(r, b, v, p))  # type: ignore[misc]
                case Answer(request):
                    client = self._over(request)
                    client.answer = effect
                    assert set(client.computed.values()) == {effect.version}, "an answer of two versions"
                case Refuse(request, why):
                    self._over(request).refusal = why

    def _over(self, request: int) -> Client:
        client = self.clients[request]
        assert client.answer is None, "answered twice"
        assert client.refusal is None, "answered twice"
        assert not client.is_abandoned, "nobody waits for this answer"
        client.at = self.now
        return client

    # Clients

    def ask(
        self,
        rows: int = 1,
        group: str | None = "g",
        within_ms: int = 30_000,
        *,
        is_poison: bool = False,
        is_bad: bool = False,
        versions: tuple[str, ...] = (),
    ) -> Client:
        """A request arrives."""
        arrived = Arrived(
            len(self.clients) + 1, rows, group, Instant(self.now + within_ms), versions or self.versions, rows
        )
        client = self.clients[arrived.request] = Client(arrived, is_poison, is_bad)
        self.tell(arrived)
        return client

    def abandon(self, client: Client) -> None:
        """It hangs up, if it still waits."""
        if client.answer is None and client.refusal is None:
            client.is_abandoned = True
            self.tell(Abandoned(client.arrived.request))

    # Replicas

    def join(self, name: ReplicaId, row_ms: float = 1.0, version: str = "m:1") -> Replica:
        """One more, and a connection to it."""
        replica = self.replicas[name] = Replica(name, version, row_ms)
        self._fleet()
        self.tell(Opened(name))
        self.tell(Heard(name, 0, frozenset({version})))
        self.later(BEAT_MS, lambda: self._beat(replica))
        return replica

    def kill(self, name: ReplicaId, *, told: bool = True) -> None:
        """``kill -9``: its connections break; the mesh tells a little later."""
        replica = self.replicas[name]
        if replica.is_alive:
            self._end(replica)
            self.tell(Broke(name))
            if told:
                del self.replicas[name]
                self.later(200, self._fleet)

    def remove(self, name: ReplicaId) -> None:
        """It is needed no more, and ends when it has finished what it has in hand."""
        del self.replicas[name]
        self._fleet()

    def _end(self, replica: Replica) -> None:
        replica.is_alive, replica.is_busy = False, False
        replica.life += 1
        replica.line.clear()

    def _fleet(self) -> None:
        self.tell(FleetTold(frozenset(self.replicas)))

    def _beat(self, replica: Replica) -> None:
        if replica.is_alive:
            if not replica.is_mute:
                waiting = sum(piece.rows for _, _, pieces in replica.line for piece in pieces)
                self.tell(Heard(replica.name, waiting, frozenset({replica.version})))
            self.later(BEAT_MS, lambda: self._beat(replica))

    def _given(self, name: ReplicaId, batch: int, version: str, pieces: tuple[Piece, ...]) -> None:
        replica = self.replicas.get(name)
        if replica is None or not replica.is_alive:
            return
        if version != replica.version:
            self.later(RTT_MS, lambda: self.tell(Declined(name, batch)))
            return
        replica.line.append((batch, version, pieces))
        self._go_on(replica)

    def swap(self, name: ReplicaId, version: str) -> None:
        """From now on it computes with another version; what it has in hand it computes with the one that it was given for."""
        self.replicas[name].version = version
        self.versions = (version, *[other for other in self.versions if other != version])
        if not self.replicas[name].is_mute:
            self.tell(Heard(name, 0, frozenset({version})))

    def _go_on(self, replica: Replica) -> None:
        if replica.is_busy or not replica.line:
            return
        replica.is_busy = True
        *_, pieces = replica.line[0]
        replica.batches.append(pieces)
        rows = sum(piece.rows for piece in pieces)
        self.later(max(1, int(rows * replica.row_ms)), lambda life=replica.life: self._done(replica, life))  # type: ignore[misc]

    def _done(self, replica: Replica, life: int) -> None:
        if life != replica.life:
            return
        batch, version, pieces = replica.line.pop(0)
        replica.is_busy = False
        poison = next((piece.request for piece in pieces if self.clients[piece.request].is_poison), None)
        if poison is not None:
            self.deaths[poison] += 1
            if self._kills_whole:
                self.kill(replica.name)
                self.later(300, lambda: self._succeed(replica))
                return
            self.later(RTT_MS, lambda: self.tell(Died(replica.name, batch)))
            self.later(300, lambda: self._go_on(replica))
            return
        bad = tuple((place, "no") for place, piece in enumerate(pieces) if self.clients[piece.request].is_bad)
        if not replica.is_mute:
            self.later(RTT_MS, lambda v=version: self._computed(replica, batch, v, pieces, bad))  # type: ignore[misc]
        self._go_on(replica)

    def _succeed(self, replica: Replica) -> None:
        """Another one comes in its place."""
        self.join(f"{replica.name}'", replica.row_ms, replica.version)

    def _computed(
        self, replica: Replica, batch: int, version: str, pieces: tuple[Piece, ...], bad: tuple[tuple[int, str], ...]
    ) -> None:
        """The shell keeps what came last of each piece before the router hears of it."""
        for place, piece in enumerate(pieces):
            client = self.clients[piece.request]
            if client.answer is None and place not in dict(bad):
                client.computed[piece.number] = version
        self.tell(Computed(replica.name, batch, version, bad))
