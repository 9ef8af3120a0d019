"""What a replica with a stage of a model passes on: to the replicas of the next stage, whose router is that of a gateway.

A batch that the next stage has not answered is kept. Where a replica there is lost, what it had not begun goes to another one, or
waits for one; a batch that it was computing goes back to where it came from, and the gateway sends it again from the first stage,
request by request: nobody here knows which of them is to blame.
"""

import sys
import time
from collections.abc import Iterator
from random import Random

import zmq
from msgspec import Struct

from dmi.serve.lane import Batch
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.frames import check_payload
from dmi_protocol.identity import PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import Fleet
from dmi_protocol.messages.serving import Broken, Busy, Compute, Computed, Declined, Greet
from dmi_protocol.serving import events as on
from dmi_protocol.serving.events import ReplicaId, RouterEffect, RouterEvent
from dmi_protocol.serving.router import Router, RouterSettings
from dmi_protocol.tensor_spec import TensorSpec
from dmi_wire.bulk import Buffer, Context
from dmi_wire.keys import KeyPair
from dmi_wire.watched import WatchedConnection


class Passed(Struct):
    """A batch that the next stage has, or is to have: what our own stage has made of it."""

    batch: Batch
    version: str
    names: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    frames: tuple[Buffer, ...]


class Back(Struct):
    """What became of a batch that was passed on: the ``computed`` outputs of the last stage; or ``how`` a process has died of it;
    or neither, where nobody has begun it."""

    batch: Batch
    computed: Computed | None = None
    frames: tuple[memoryview, ...] = ()
    how: str = ""


class NextStage:
    """``name`` is under which we are admitted there; ``stages`` is how many come after ours. ``poller`` gets our sockets."""

    def __init__(self, context: Context, keys: KeyPair, name: bytes, stages: int, poller: zmq.Poller) -> None:
        self._context = context
        self._keys = keys
        self._name = name
        self._poller = poller
        settings = RouterSettings(limits.BATCH_ROWS, 0, exact=True, stages=stages, deaths=1)
        self._router = Router(settings, Random())
        self._lines: dict[ReplicaId, WatchedConnection] = {}
        self._passed: dict[int, Passed] = {}
        self._next = 1
        self._back: list[Back] = []
        self._how: dict[int, str] = {}
        """By what was passed on: how a process has died of it."""

    @property
    def versions(self) -> frozenset[str]:
        """Those that somebody of the next stages has, and of all after it."""
        return self._router.versions

    @property
    def batches(self) -> int:
        """How many were passed on and not answered."""
        return len(self._passed)

    @property
    def rows(self) -> int:
        """What was passed on and not answered."""
        return sum(passed.batch.rows for passed in self._passed.values())

    def wait_ms(self, most: int) -> int:
        """How long nothing is due, at most so long."""
        due = self._router.deadline()
        return most if due is None else max(0, min(most, due - _now()))

    def told(self, fleet: Fleet) -> None:
        """Connect to those that are new, and to no others."""
        wanted = {endpoint.public_key: endpoint for endpoint in fleet.replicas}
        for name, endpoint in wanted.items():
            if name not in self._lines:
                line = WatchedConnection(
                    self._context, self._keys, self._name, endpoint.address, PublicKey(endpoint.public_key)
                )
                self._lines[name] = line
                self._poller.register(line.socket, zmq.POLLIN)
                self._poller.register(line.monitor, zmq.POLLIN)
        self._step(on.FleetTold(frozenset(wanted)))

    def pass_on(self, passed: Passed) -> None:
        """To whoever has least to do there, as soon as somebody is there."""
        number, self._next = self._next, self._next + 1
        self._passed[number] = passed
        within_ms = max(1, int((passed.batch.gives_up_at - time.monotonic()) * 1000))
        size = sum(spec.length_bytes for spec in passed.specs)
        until = Instant(_now() + within_ms)
        self._step(on.Arrived(number, passed.batch.rows, None, until, (passed.version,), size))

    def hear(self) -> Iterator[Back]:
        """Whatever there is to hear, and what became of batches since."""
        for name, line in list(self._lines.items()):
            for is_made in line.news():
                if is_made:
                    line.send(Greet())
                self._step(on.Opened(name) if is_made else on.Broke(name))
            self._receive(name, line)
        due = self._router.deadline()
        if due is not None and due <= _now():
            self._do(self._router.tick(_now()))
        back, self._back = self._back, []
        yield from back

    def _receive(self, name: ReplicaId, line: WatchedConnection) -> None:
        while self._lines.get(name) is line:
            try:
                found = line.receive()
                if found is None:
                    return
                self._take(name, *found)
            except RemoteProtocolError as error:
                print(f"a replica of the next stage speaks nonsense: {error}", file=sys.stderr, flush=True)

    def _take(self, name: ReplicaId, message: object, frames: tuple[memoryview, ...]) -> None:
        match message:
            case Busy(waiting, versions):
                self._step(on.Heard(name, waiting, frozenset(versions)))
            case Computed(batch, version):
                check_payload(message.tensors, frames)
                for number in self._numbers(name, batch):
                    passed = self._passed.pop(number)
                    self._back.append(Back(passed.batch, message, frames))
                self._step(on.Heard(name, message.waiting))
                self._step(on.Computed(name, batch, version))
            case Broken(batch, how, waiting):
                self._how |= dict.fromkeys(self._numbers(name, batch), how)
                self._step(on.Heard(name, waiting))
                self._step(on.Died(name, batch))
            case Declined(batch, waiting, versions):
                self._step(on.Heard(name, waiting, frozenset(versions)))
                self._step(on.Declined(name, batch))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} from a replica")

    def _numbers(self, name: ReplicaId, batch: int) -> list[int]:
        return [piece.request for piece in self._router.batch(name, batch) if piece.request in self._passed]

    def _step(self, event: RouterEvent) -> None:
        self._do(self._router.step(_now(), event))

    def _do(self, effects: list[RouterEffect]) -> None:
        for effect in effects:
            match effect:
                case on.Dispatch(replica, batch, version, pieces, until):
                    self._give(replica, batch, version, pieces[0].request, until)
                case on.Refuse(number, why):
                    passed, how = self._passed.pop(number, None), self._how.pop(number, "")
                    if passed is not None:
                        is_blamed = isinstance(why, on.Killed)
                        self._back.append(Back(passed.batch, how=(how or "its host was lost") if is_blamed else ""))
        for gone in self._lines.keys() - self._router.known:
            line = self._lines.pop(gone)
            self._poller.unregister(line.socket)
            self._poller.unregister(line.monitor)
            line.close()

    def _give(self, replica: ReplicaId, batch: int, version: str, number: int, until: Instant) -> None:
        passed = self._passed[number]
        within_ms = max(1, until - _now())
        rows = passed.batch.message.rows
        message = Compute(batch, version, passed.names, passed.specs, rows, within_ms)
        self._lines[replica].send(
            message, passed.frames
        )  # where it cannot be sent, the connection is about to be told to be broken

    def close(self) -> None:
        """No connection is left."""
        for line in self._lines.values():
            line.close()
        self._lines = {}


def _now() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000)
