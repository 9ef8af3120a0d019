"""A gateway's connections to the replicas: does what its router decides, and keeps the tensors of requests meanwhile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random

import zmq

from dmi_node.gateway.contract import Contract, Inputs
from dmi_node.gateway.offer import Choice, Offer
from dmi_node.gateway.shared_batches import SharedBatches
from dmi_node.gateway.tensors import DTYPES, Buffer, GivenTensor
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.frames import check_payload
from dmi_protocol.identity import NodeId, PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import Endpoint, Fleet, RoleKey
from dmi_protocol.messages.serving import Broken, Busy, Compute, Computed, Declined, Greet
from dmi_protocol.serving import events as on
from dmi_protocol.serving.datatypes import DATATYPES
from dmi_protocol.serving.events import Piece, Refusal, ReplicaId, RouterEffect, RouterEvent
from dmi_protocol.serving.router import Router, RouterSettings
from dmi_protocol.tensor_spec import TensorSpec, describe
from dmi_wire.bulk import Context
from dmi_wire.keys import KeyPair
from dmi_wire.watched import WatchedConnection, can_be_read

_WANTED_S = 1.0


class Outcome:
    """Of a request: the outputs and the version that computed them, or why there are none. ``begun_at`` is when a replica was
    first asked, by ``time.monotonic``."""

    __slots__ = ("begun_at", "refusal", "tensors", "version")

    def __init__(
        self, tensors: tuple[GivenTensor, ...], version: str, refusal: Refusal | None, begun_at: float | None
    ) -> None:
        self.tensors = tensors
        self.version = version
        self.refusal = refusal
        self.begun_at = begun_at


class _Asked:
    """A request that is not answered yet. ``found`` has the outputs of each piece that is computed."""

    __slots__ = ("begun_at", "contract", "done", "found", "inputs")

    def __init__(self, inputs: Inputs, contract: Contract, done: Callable[[Outcome], None]) -> None:
        self.inputs = inputs
        self.contract = contract
        self.done = done
        self.found: dict[int, tuple[GivenTensor, ...]] = {}
        self.begun_at: float | None = None


class _Line(WatchedConnection):
    """The connection to one replica."""

    def __init__(self, context: Context, keys: KeyPair, name: bytes, endpoint: Endpoint) -> None:
        self.replica: ReplicaId = endpoint.public_key
        self.node = endpoint.node
        super().__init__(context, keys, name, endpoint.address, PublicKey(endpoint.public_key))


class Replicas:
    """``computed`` hears of each batch: its rows."""

    def __init__(
        self,
        offer: Offer,
        settings: RouterSettings,
        key: RoleKey,
        node: NodeId,
        context: Context,
        keys: KeyPair,
        computed: Callable[[int], None],
    ) -> None:
        self._offer = offer
        self._name = key.name.encode("ascii")
        self._node = node
        self._shared = SharedBatches()
        self._context = context
        self._keys = keys
        self._computed = computed
        self._loop = asyncio.get_running_loop()
        self._router = Router(settings, Random())
        self._lines: dict[ReplicaId, _Line] = {}
        self._asked: dict[int, _Asked] = {}
        self._worked: dict[ReplicaId, float] = {}
        """Which share of the time each computed lately."""
        self._wanted_at: float | None = None
        """When it was said last that there is no replica, if none has come since."""
        self.wanted: Callable[[], None] | None = None
        """Is called when something is asked and there is no replica; again after a while, for it may have been said too early."""
        self._next_request = 1
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Instant | None = None
        self._idle: asyncio.Future[None] | None = None
        """Somebody waits for the last answer."""

    @property
    def able(self) -> int:
        """How many could compute something now."""
        return self._router.able

    @property
    def busy(self) -> float:
        """The share of the time that they compute, all together."""
        return round(sum(self._worked.get(name, 0.0) for name in self._lines), 3)

    @property
    def waiting(self) -> int:
        """How many requests are not answered yet."""
        return self._router.waiting

    # Requests

    @property
    def versions(self) -> frozenset[str]:
        """Those that a replica has that could compute something now."""
        return self._router.versions

    def ask(self, inputs: Inputs, choice: Choice, within_ms: int, done: Callable[[Outcome], None]) -> int:
        """Have it computed, by a version of ``choice``; ``done`` is called once, perhaps before this returns. Gives what
        ``abandon`` takes."""
        request, self._next_request = self._next_request, self._next_request + 1
        self._asked[request] = _Asked(inputs, choice.contract, done)
        rows, until = inputs.rows if choice.contract.is_batched else 1, Instant(_now() + within_ms)
        self._step(on.Arrived(request, rows, inputs.group, until, choice.versions, inputs.size_bytes))
        if not self._lines and self.wanted is not None:
            now = time.monotonic()
            if self._wanted_at is None or now - self._wanted_at >= _WANTED_S:
                self._wanted_at = now
                self.wanted()
        return request

    def abandon(self, request: int) -> None:
        """Nobody waits for it any more."""
        if self._asked.pop(request, None) is not None:
            self._step(on.Abandoned(request))

    # Replicas

    def told(self, fleet: Fleet) -> None:
        """Connect to those that are new, and to no others; know what they compute with."""
        if fleet.versions is not None:
            self._offer.told(fleet.versions)
        wanted = {endpoint.public_key: endpoint for endpoint in fleet.replicas}
        if wanted:
            self._wanted_at = None
        self._worked = {name: worked for name, worked in self._worked.items() if name in wanted}
        for name, endpoint in wanted.items():
            if name in self._lines:
                continue
            line = self._lines[name] = _Line(self._context, self._keys, self._name, endpoint)
            self._watch(line.socket, line, self._receive)
            self._watch(line.monitor, line, self._notice)
        self._step(on.FleetTold(frozenset(wanted)))

    async def drain(self, within_s: float) -> None:
        """Until all that was asked is answered, or the time is over."""
        if self.waiting:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=within_s)

    def close(self) -> None:
        """No connection is left; what was asked has no answer."""
        for name in list(self._lines):
            self._close(name)
        if self._timer is not None:
            self._timer.cancel()

    def _close(self, name: ReplicaId) -> None:
        line = self._lines.pop(name)
        self._shared.forget(name)
        for socket in (line.socket, line.monitor):
            self._loop.remove_reader(_descriptor(socket))
        line.close()

    def _watch(self, socket: "zmq.Socket[bytes]", line: _Line, look: Callable[[_Line], None]) -> None:
        """zmq's descriptor tells of changes only, so whatever is there is taken each time, and once now."""
        self._loop.add_reader(_descriptor(socket), look, line)
        self._loop.call_soon(look, line)

    def _notice(self, line: _Line) -> None:
        """The connection was made, or broke."""
        for is_made in line.news():
            if is_made:
                self._send(line, Greet())
            else:
                self._shared.forget(line.replica)
            self._step(on.Opened(line.replica) if is_made else on.Broke(line.replica))
            if self._lines.get(line.replica) is not line:
                return

    def _receive(self, line: _Line) -> None:
        while self._lines.get(line.replica) is line:
            try:
                found = line.receive()
                if found is None:
                    return
                self._take(line.replica, *found)
            except RemoteProtocolError as error:
                print(f"a replica speaks nonsense: {error}", flush=True)

    def _take(self, replica: ReplicaId, message: object, frames: Sequence[memoryview]) -> None:
        match message:
            case Computed(batch, version):
                self._step(on.Heard(replica, message.waiting))
                try:
                    if message.is_shared:
                        frames = self._shared.outputs(replica, batch, message.tensors)
                    check_payload(message.tensors, frames)
                    self._keep(replica, message, frames)
                except RemoteProtocolError:
                    self._step(on.Died(replica, batch))
                    raise
                finally:
                    self._shared.done(replica, batch)
                self._step(on.Computed(replica, batch, version, message.rejected))
            case Broken(batch, how, waiting):
                print(f"a batch was lost: {how}", flush=True)
                self._shared.done(replica, batch)
                self._step(on.Heard(replica, waiting))
                self._step(on.Died(replica, batch))
            case Declined(batch, waiting, versions):
                self._shared.done(replica, batch)
                self._step(on.Heard(replica, waiting, frozenset(versions)))
                self._step(on.Declined(replica, batch))
            case Busy(waiting, versions, worked):
                self._worked[replica] = worked
                self._step(on.Heard(replica, waiting, frozenset(versions)))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} from a replica")

    def _keep(self, replica: ReplicaId, message: Computed, frames: Sequence[memoryview]) -> None:
        """To each request its own rows."""
        pieces = self._router.batch(replica, message.batch)
        rejected = {place for place, _ in message.rejected}
        good = [piece for place, piece in enumerate(pieces) if place not in rejected]
        rows, first = sum(piece.rows for piece in good), 0
        self._computed(rows)
        if replica in self._lines and self._lines[replica].node == self._node:
            self._shared.learn(replica, message.tensors, rows)
        for piece in good:
            asked = self._asked.get(piece.request)
            if asked is not None:
                asked.found[piece.number] = tuple(
                    _slice(asked.contract, name, spec, frame, first, piece.rows, rows)
                    for name, spec, frame in zip(message.names, message.tensors, frames, strict=True)
                )
            first += piece.rows

    # What the router wants

    def _step(self, event: RouterEvent) -> None:
        self._do(self._router.step(_now(), event))

    def _do(self, effects: Sequence[RouterEffect]) -> None:
        for effect in effects:
            match effect:
                case on.Dispatch():
                    self._dispatch(effect)
                case on.Answer(request, version):
                    if (asked := self._asked.pop(request, None)) is not None:
                        asked.done(Outcome(_joined(asked.found), version, None, asked.begun_at))
                case on.Refuse(request, why):
                    if (asked := self._asked.pop(request, None)) is not None:
                        asked.done(Outcome((), "", why, asked.begun_at))
        if len(self._lines) > len(self._router.known):  # those that have left have answered all that they had
            for gone in self._lines.keys() - self._router.known:
                self._close(gone)
        self._set_timer()
        if self._idle is not None and not self._router.waiting and not self._idle.done():
            self._idle.set_result(None)

    def _set_timer(self) -> None:
        due = self._router.deadline()
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at, self._timer = due, None
        if due is not None:
            self._timer = self._loop.call_later(max(0, due - _now()) / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self._do(self._router.tick(_now()))

    def _dispatch(self, effect: on.Dispatch) -> None:
        contract = self._asked[effect.pieces[0].request].contract
        names = tuple(info.name for info in contract.inputs)
        specs, inputs = list[TensorSpec](), list[list[Buffer]]()
        for nth, _ in enumerate(names):
            parts = [self._part(piece, nth) for piece in effect.pieces]
            shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if len(parts) > 1 else parts[0].shape
            specs.append(describe(DTYPES[parts[0].datatype], shape))
            inputs.append([part.data for part in parts])
        now = time.monotonic()
        for piece in effect.pieces:
            if self._asked[piece.request].begun_at is None:
                self._asked[piece.request].begun_at = now
        rows = tuple(piece.rows for piece in effect.pieces)
        within_ms = max(1, effect.until - _now())
        line, shared = self._lines[effect.replica], None
        if line.node == self._node:
            shared = self._shared.put(effect.replica, effect.batch, specs, inputs, sum(rows))
        frames = [] if shared else [parts[0] if len(parts) == 1 else b"".join(parts) for parts in inputs]
        message = Compute(effect.batch, effect.version, names, tuple(specs), rows, within_ms, shared)
        if not self._send(line, message, frames):
            self._shared.done(effect.replica, effect.batch)  # it has not heard of it
            self._loop.call_soon(self._step, on.Broke(effect.replica))

    def _part(self, piece: Piece, nth: int) -> GivenTensor:
        """The rows of an input that a piece has."""
        asked = self._asked[piece.request]
        inputs, tensor = asked.inputs, asked.inputs.tensors[nth]
        if not asked.contract.is_batched or piece.rows == inputs.rows:
            return tensor
        each = tensor.length_bytes // inputs.rows
        data = memoryview(tensor.data)[piece.first * each : (piece.first + piece.rows) * each]
        return GivenTensor(tensor.name, tensor.datatype, (piece.rows, *tensor.shape[1:]), data)

    def _send(self, line: _Line, message: Greet | Compute, frames: Sequence[Buffer] = ()) -> bool:
        is_sent = line.send(message, frames)
        if is_sent and can_be_read(line.socket):  # sending may have taken the news of it
            self._loop.call_soon(self._receive, line)
        return is_sent


def _joined(found: dict[int, tuple[GivenTensor, ...]]) -> tuple[GivenTensor, ...]:
    """The outputs of all pieces, in order."""
    pieces = [found[number] for number in sorted(found)]
    if len(pieces) == 1:
        return pieces[0]
    return tuple(
        GivenTensor(
            parts[0].name,
            parts[0].datatype,
            (sum(part.shape[0] for part in parts), *parts[0].shape[1:]),
            b"".join(part.data for part in parts),
        )
        for parts in zip(*pieces, strict=True)
    )


def _descriptor(socket: "zmq.Socket[bytes]") -> int:
    return int(socket.getsockopt(zmq.FD))


def _now() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000)


def _slice(
    contract: Contract, name: str, spec: TensorSpec, frame: memoryview, first: int, rows: int, of: int
) -> GivenTensor:
    datatype = DATATYPES.get(spec.dtype, spec.dtype)
    if not contract.is_batched:
        return GivenTensor(name, datatype, spec.shape, frame)
    if not spec.shape or spec.shape[0] != of:
        raise RemoteProtocolError(f"the output {name!r} has not {of} rows")
    each = spec.length_bytes // of if of else 0
    return GivenTensor(name, datatype, (rows, *spec.shape[1:]), frame[first * each : (first + rows) * each])
