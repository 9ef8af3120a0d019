"""The processes of a deployment: gateways, which are asked all the time and run the product's own router, and replicas, which are
quick or slow, and which some requests end."""

from collections import deque
from random import Random
from typing import NamedTuple

from dmi_protocol import limits
from dmi_protocol.identity import PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import Fleet, GatewayLaunch, Lease, ReplicaLaunch, RoleKey, Roster, Wanted
from dmi_protocol.serving import events as on
from dmi_protocol.serving.lanes import needed, offered
from dmi_protocol.serving.passing import GoesBack, Passing, PassingEffect, PassingEvent, PassOn
from dmi_protocol.serving.router import Router, RouterSettings
from tests.simulation.node import Node
from tests.simulation.process import Said, exits, tell_daemon
from tests.simulation.sockets import Sockets
from tests.simulation.trouble import demand

_ASK_MS = 400
_PATIENCE_MS = 8_000
_QUICK_MS, _SLOW_MS = 20, 300
_POISON = 0.01
_LOAD_MS = 1_500
_AGAIN_MS = 300
"""Until another process computes, after one was ended."""


class Given(NamedTuple):
    """A gateway gives a batch; ``poison`` says that a request in it ends whoever computes it."""

    batch: int
    version: str
    pieces: tuple[on.Piece, ...]
    is_poison: bool


class Done(NamedTuple):
    """A replica has computed a batch, or its process has died of it."""

    batch: int
    version: str
    has_died: bool = False


class Waiting(NamedTuple):
    """A replica is there."""

    rows: int
    versions: frozenset[str]


class Late(NamedTuple):
    """A replica has another version meanwhile, and has not begun this batch."""

    batch: int


class Greeting(NamedTuple):
    """A stage may still give batches of these versions to the next one."""

    versions: tuple[str, ...]


class Line(NamedTuple):
    """A batch that waits for our computing, and who gave it."""

    sender: RoleKey
    given: Given


class Connections:
    """Of a process to those that it may ask: made and broken as the network and they are."""

    def __init__(self, sockets: Sockets, owner: "ServingReplica | ScriptedGateway") -> None:
        self._sockets = sockets
        self._owner = owner
        self.names: dict[RoleKey, PublicKey] = {}
        self._open: set[RoleKey] = set()

    def told(self, fleet: Fleet) -> None:
        """These may be asked."""
        self.names = {endpoint.key: endpoint.public_key for endpoint in fleet.replicas}
        self._open &= self.names.keys()

    def news(self) -> list[on.Opened | on.Broke]:
        """What has happened since."""
        found: list[on.Opened | on.Broke] = []
        for key, name in self.names.items():
            process = self._sockets.processes[name]
            is_there = process.is_alive and self._sockets.is_open(self._owner, process)
            if is_there and key not in self._open:
                self._open.add(key)
                found.append(on.Opened(name))
            elif key in self._open and not process.is_alive and not process.node.is_paused:
                self._open.discard(key)
                found.append(on.Broke(name))
        return found


class ServingReplica:
    """Computes one batch at a time, in order, or a stage of it, which it passes on then. A version that it is told is in its
    memory a while later."""

    def __init__(self, sockets: Sockets, node: Node, launch: ReplicaLaunch) -> None:
        self.key: RoleKey = launch.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.boot_count = node.boot_count
        self.is_alive = True
        self._sockets = sockets
        self._clock = sockets.clock
        self._stage = launch.stage
        self._ready: list[str] = [launch.model.id]
        self._wanted: tuple[str, ...] = (launch.model.id,)
        self._given: dict[RoleKey, tuple[str, ...]] = {}
        self._most_ms = sockets.clock.random.choice([_QUICK_MS, _QUICK_MS, _SLOW_MS])
        self._gateways: dict[RoleKey, PublicKey] = {}
        self._line: deque[Line] = deque()
        self._is_busy = False
        later = len(launch.model.content.stages) - launch.stage - 1
        self._passing = Passing(later, Random(self._clock.random.random())) if later > 0 else None
        self._passed: dict[int, Line] = {}
        self._next = 1
        self._connections = Connections(sockets, self)
        self._tick_at: int | None = None
        sockets.clock.later(limits.REPLICA_BEAT_MS, self._beat)
        if self._passing is not None:
            sockets.clock.later(100, self._look)

    def fleet(self, fleet: Fleet) -> None:
        """These may ask us, and we those of the next stage."""
        self._gateways = {endpoint.key: endpoint.public_key for endpoint in fleet.gateways}
        self._given = {key: given for key, given in self._given.items() if key in self._gateways}
        self._connections.told(fleet)
        if self._passing is not None:
            self._step(on.FleetTold(frozenset(self._connections.names.values())))
        if fleet.versions is None:
            return
        files = [file.blob for ref in fleet.versions.all for file in ref.content.files_of(fleet.stage)]
        missing = [blob for blob in files if blob not in self.node.blobs]
        demand(
            "inputs", not missing, f"{self.key.name} on {self.node.name} is told a version whose files are not there"
        )
        demand("serving", fleet.stage == self._stage, f"{self.key.name} is told that it has another stage")
        self._wanted = tuple(ref.id for ref in fleet.versions.all)
        for version in self._wanted:
            self._clock.later(1 + int(_LOAD_MS * self._clock.random.random()), self._loaded, version)

    def _loaded(self, version: str) -> None:
        if self.is_alive and version in self._wanted and version not in self._ready:
            self._ready.append(version)
            self._retire()

    @property
    def _versions(self) -> tuple[str, ...]:
        later = self._passing.versions if self._passing is not None else None
        return offered(self._ready, self._wanted, later, is_first=not self._stage)

    def _retire(self) -> None:
        kept = needed(self._wanted, self._versions, self._given.values(), is_first=not self._stage)
        kept |= {line.given.version for line in (*self._line, *self._passed.values())}
        self._ready = [version for version in self._ready if version in kept]
        for name in self._connections.names.values():
            self._sockets.say(self, name, Said(0, 0, Greeting(tuple(self._ready))))

    def roster(self, roster: Roster) -> None:
        """See ``Process``; no replica is told one."""

    def lease(self, lease: Lease) -> None:
        """See ``Process``; no replica needs one."""

    def hear(self, sender: RoleKey, said: Said) -> None:
        """A batch; or what has become of one that was passed on."""
        name, event = self._connections.names.get(sender), said.event
        if isinstance(event, Greeting) and sender in self._gateways:
            self._given[sender] = event.versions
        elif isinstance(event, Given) and sender in self._gateways:
            if event.version not in self._versions:
                self._say(sender, Late(event.batch))
                return
            self._line.append(Line(sender, event))
            self._go_on()
        elif name is not None and self._passing is not None:
            match event:
                case Waiting(rows, versions):
                    self._step(on.Heard(name, rows, versions))
                case Late(batch):
                    self._step(on.Declined(name, batch))
                case Done(batch, version, has_died):
                    number = self._passing.number(name, batch)
                    given = self._passed[number].given if number is not None else None
                    is_its = given is None or given.version == version
                    demand("serving", is_its, f"{self.key} gave a batch to be computed by another version")
                    self._step(on.Died(name, batch) if has_died else on.Computed(name, batch, version))

    def _step(self, event: PassingEvent) -> None:
        if self.is_alive and self._passing is not None:
            self._do(self._passing, self._passing.step(Instant(self._clock.now), event))

    def _do(self, passing: Passing, effects: list[PassingEffect]) -> None:
        for effect in effects:
            match effect:
                case on.Dispatch(replica, batch, version, pieces):
                    given = self._passed[pieces[0].request].given
                    asked = Given(batch, version, given.pieces, given.is_poison)
                    self._sockets.say(self, PublicKey(replica), Said(0, 0, asked))
                case GoesBack(number, is_computed, has_died):
                    sender, given = self._passed.pop(number)
                    is_over = is_computed or has_died
                    self._say(sender, Done(given.batch, given.version, has_died) if is_over else Late(given.batch))
        passing.check()
        due = passing.deadline()
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self._clock.at(max(due, self._clock.now + 1), self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        if self.is_alive and self._passing is not None:
            self._do(self._passing, self._passing.tick(Instant(self._clock.now)))

    def _look(self) -> None:
        if self.is_alive:
            for event in self._connections.news():
                if isinstance(event, on.Opened):
                    greeting = Greeting(tuple(self._ready))
                    self._sockets.say(self, PublicKey(event.replica), Said(0, 0, greeting))
                self._step(event)
            self._clock.later(100, self._look)

    def _go_on(self) -> None:
        if self.is_alive and not self._is_busy and self._line:
            self._is_busy = True
            delay = 1 + int(self._most_ms * self._clock.random.random())
            self._clock.later(delay, self._computed)

    def _computed(self) -> None:
        if not self.is_alive:
            return
        sender, given = self._line.popleft()
        demand("serving", given.version in self._ready, f"{self.key} computes with {given.version}, which it has not")
        if given.is_poison and self._clock.random.random() < 0.3:
            exits(self, 0, 11)
            return
        dies = given.is_poison and (self._passing is None or self._clock.random.random() < 0.3)
        if dies or self._passing is None:
            self._say(sender, Done(given.batch, given.version, dies))
        else:
            self._pass_on(sender, given)
        self._clock.later(_AGAIN_MS if dies else 1, self._free)

    def _pass_on(self, sender: RoleKey, given: Given) -> None:
        number, self._next = self._next, self._next + 1
        self._passed[number] = Line(sender, given)
        rows = sum(piece.rows for piece in given.pieces)
        self._sockets.counters["batches passed on"] += 1
        self._step(PassOn(number, rows, given.version, Instant(self._clock.now + _PATIENCE_MS)))

    def _free(self) -> None:
        self._is_busy = False
        self._go_on()

    def _beat(self) -> None:
        if self.is_alive:
            self._retire()
            for gateway in self._gateways:
                lines = (*self._line, *self._passed.values())
                rows = sum(piece.rows for line in lines for piece in line.given.pieces)
                self._say(gateway, Waiting(rows, frozenset(self._versions)))
            self._clock.later(limits.REPLICA_BEAT_MS, self._beat)

    def _say(self, gateway: RoleKey, event: object) -> None:
        if gateway in self._gateways:
            self._sockets.say(self, self._gateways[gateway], Said(0, 0, event))


class ScriptedGateway:
    """Every now and then somebody asks it something. What is asked has one end, in time: an answer, by one version; or a refusal,
    when its time is over or it has ended two processes."""

    def __init__(self, sockets: Sockets, node: Node, launch: GatewayLaunch) -> None:
        self.key: RoleKey = launch.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.boot_count = node.boot_count
        self.is_alive = True
        self._sockets = sockets
        self._clock = sockets.clock
        self._versions: tuple[str, ...] = (launch.model.id,)
        """Any of them may compute a request, the newest first."""
        stages = len(launch.model.content.stages) or 1
        settings = RouterSettings(launch.max_batch, launch.max_wait_ms, launch.exact, stages)
        self._router = Router(settings, Random(self._clock.random.random()))
        self._connections = Connections(sockets, self)
        self._until: dict[int, int] = {}
        """By request that has no end yet: when it must have one."""
        self._poison: set[int] = set()
        self._computed: dict[tuple[int, int], str] = {}
        """By request and piece: the version that computed it last."""
        self._next = 1
        self._tick_at: int | None = None
        self._first = launch.model.id
        self._has_begun = False

    def fleet(self, fleet: Fleet) -> None:
        """These are the replicas."""
        first, self._has_begun = not self._has_begun, True
        self._connections.told(fleet)
        if fleet.versions is not None:
            current = fleet.versions.current.id
            self._versions = (current, *[other for other in self._versions if other != current])
        self._step(on.FleetTold(frozenset(self._connections.names.values())))
        if first:
            self._ask()
            self._look()

    def roster(self, roster: Roster) -> None:
        """See ``Process``; no gateway is told one."""

    def lease(self, lease: Lease) -> None:
        """See ``Process``; no gateway needs one."""

    def hear(self, sender: RoleKey, said: Said) -> None:
        """From a replica."""
        name = self._connections.names.get(sender)
        if name is None:
            return
        match said.event:
            case Waiting(rows, versions):
                self._step(on.Heard(name, rows, versions))
            case Late(batch):
                self._step(on.Declined(name, batch))
            case Done(batch, version, has_died):
                if has_died:
                    self._step(on.Died(name, batch))
                else:
                    for piece in self._router.batch(name, batch):
                        self._computed[piece.request, piece.number] = version
                    self._step(on.Computed(name, batch, version))

    def _ask(self) -> None:
        if not self.is_alive:
            return
        random = self._clock.random
        request, self._next = self._next, self._next + 1
        rows = random.choice([1, 1, 1, 1, 1, 2, 12])
        self._until[request] = self._clock.now + _PATIENCE_MS
        if random.random() < _POISON and rows == 1:
            self._poison.add(request)
        group = random.choice(["a", "a", "b", None])
        if not self._connections.names:
            tell_daemon(self, self._clock, Wanted(request))
        self._step(on.Arrived(request, rows, group, Instant(self._until[request]), self._versions, rows))
        self._clock.later(1 + int(_ASK_MS * random.random()), self._ask)

    def _look(self) -> None:
        """Connections are made, and break."""
        if not self.is_alive:
            return
        for event in self._connections.news():
            self._step(event)
        late = [request for request, until in self._until.items() if self._clock.now > until + 1_000]
        demand("serving", not late or self.node.is_paused, f"{self.key} has neither answered nor refused {late}")
        self._clock.later(100, self._look)

    def _step(self, event: on.RouterEvent) -> None:
        if self.is_alive:
            self._do(self._router.step(Instant(self._clock.now), event))

    def _do(self, effects: list[on.RouterEffect]) -> None:
        for effect in effects:
            match effect:
                case on.Dispatch(replica, batch, version, pieces):
                    is_poison = any(piece.request in self._poison for piece in pieces)
                    self._sockets.say(self, PublicKey(replica), Said(0, 0, Given(batch, version, pieces, is_poison)))
                case on.Answer(request, version):
                    self._answered(request, version)
                case on.Refuse(request, why):
                    self._refused(request, why)
        self._router.check()
        self._plan()

    def _answered(self, request: int, version: str) -> None:
        demand("serving", request in self._until, f"{self.key} answers {request} twice")
        demand("serving", request not in self._poison, f"{self.key} answers {request}, which nobody can compute")
        by = {who for (asked, _), who in self._computed.items() if asked == request}
        demand("serving", by == {version}, f"{self.key} answers {request} by {version}, and {by} have computed it")
        demand("serving", version in self._versions, f"{self.key} answers {request} by {version}, which nobody told it")
        self._sockets.counters["requests answered by a later version"] += version != self._first
        self._over(request)
        self._sockets.counters["requests answered"] += 1

    def _refused(self, request: int, why: on.Refusal) -> None:
        demand("serving", request in self._until, f"{self.key} refuses {request}, which has an end already")
        is_late = isinstance(why, on.TooLate) and self._clock.now >= self._until[request]
        demand("serving", is_late or isinstance(why, on.Killed), f"{self.key} refuses {request}: {why}")
        self._over(request)
        self._sockets.counters["requests refused"] += 1

    def _over(self, request: int) -> None:
        del self._until[request]
        self._computed = {key: by for key, by in self._computed.items() if key[0] != request}

    def _plan(self) -> None:
        due = self._router.deadline()
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self._clock.at(max(due, self._clock.now + 1), self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        if self.is_alive:
            self._do(self._router.tick(Instant(self._clock.now)))
