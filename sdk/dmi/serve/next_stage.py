"""The connections of a replica with a stage of a model to the replicas of the next one: does what ``Passing`` decides, and keeps
the tensors of what was passed on meanwhile."""

import sys
import time
from collections.abc import Iterator
from random import Random

import zmq
from msgspec import Struct

from dmi.serve.lane import Batch
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.frames import check_payload
from dmi_protocol.identity import PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import Fleet
from dmi_protocol.messages.serving import Broken, Busy, Compute, Computed, Declined, Greet
from dmi_protocol.serving import events as on
from dmi_protocol.serving.events import ReplicaId
from dmi_protocol.serving.passing import GoesBack, Passing, PassingEffect, PassingEvent, PassOn
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
    computed: Computed | None = None
    outputs: tuple[memoryview, ...] = ()
    """Those of the last stage."""
    how: str = "the host that computed it was lost"
    """A process has died of it, if one has."""


class NextStage:
    """``name`` is under which we are admitted there; ``stages`` is how many come after ours. ``poller`` gets our sockets."""

    def __init__(self, context: Context, keys: KeyPair, name: bytes, stages: int, poller: zmq.Poller) -> None:
        self._context = context
        self._keys = keys
        self._name = name
        self._poller = poller
        self._lines: dict[ReplicaId, WatchedConnection] = {}
        self._passed: dict[int, Passed] = {}
        self._next = 1
        self._given: tuple[str, ...] = ()
        self._back: list[tuple[Passed, GoesBack]] = []
        self.passing = Passing(stages, Random())

    def may_give(self, versions: tuple[str, ...]) -> None:
        """We may pass on what these versions have computed, and nothing else: the others need not be kept for us."""
        if versions != self._given:
            self._given = versions
            for line in self._lines.values():
                line.send(Greet(versions))

    def wait_ms(self, most: int) -> int:
        """How long nothing is due, at most so long."""
        due = self.passing.deadline()
        return most if due is None else max(0, min(most, due - _now()))

    def told(self, fleet: Fleet) -> None:
        """Connect to those that are new, and to no others."""
        wanted = {endpoint.public_key: endpoint for endpoint in fleet.replicas}
        for name, endpoint in wanted.items():
            if name not in self._lines:
                key = PublicKey(endpoint.public_key)
                line = WatchedConnection(self._context, self._keys, self._name, endpoint.address, key)
                self._lines[name] = line
                self._poller.register(line.socket, zmq.POLLIN)
                self._poller.register(line.monitor, zmq.POLLIN)
        self._step(on.FleetTold(frozenset(wanted)))

    def pass_on(self, passed: Passed) -> None:
        """To whoever has least to do there, as soon as somebody is there."""
        number, self._next = self._next, self._next + 1
        self._passed[number] = passed
        until = Instant(_now() + max(1, int((passed.batch.gives_up_at - time.monotonic()) * 1000)))
        size = sum(spec.length_bytes for spec in passed.specs)
        self._step(PassOn(number, passed.batch.rows, passed.version, until, size))

    def hear(self) -> Iterator[tuple[Passed, GoesBack]]:
        """Take in whatever there is to hear; gives what became of batches."""
        for name, line in list(self._lines.items()):
            for is_made in line.news():
                if is_made:
                    line.send(Greet(self._given))
                self._step(on.Opened(name) if is_made else on.Broke(name))
                if self._lines.get(name) is not line:  # it had left, and its connection was closed with that
                    break
            self._receive(name, line)
        due = self.passing.deadline()
        if due is not None and due <= _now():
            self._do(self.passing.tick(_now()))
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
                if (passed := self._in_hand(name, batch)) is not None:
                    passed.computed, passed.outputs = message, frames
                self._step(on.Heard(name, message.waiting))
                self._step(on.Computed(name, batch, version))
            case Broken(batch, how, waiting):
                if (passed := self._in_hand(name, batch)) is not None:
                    passed.how = how
                self._step(on.Heard(name, waiting))
                self._step(on.Died(name, batch))
            case Declined(batch, waiting, versions):
                self._step(on.Heard(name, waiting, frozenset(versions)))
                self._step(on.Declined(name, batch))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} from a replica")

    def _in_hand(self, name: ReplicaId, batch: int) -> Passed | None:
        number = self.passing.number(name, batch)
        return None if number is None else self._passed[number]

    def _step(self, event: PassingEvent) -> None:
        self._do(self.passing.step(_now(), event))

    def _do(self, effects: list[PassingEffect]) -> None:
        broken: list[ReplicaId] = []
        for effect in effects:
            match effect:
                case on.Dispatch(replica, batch, version, pieces, until):
                    passed = self._passed[pieces[0].request]
                    rows, within_ms = passed.batch.message.rows, max(1, until - _now())
                    asked = Compute(batch, version, passed.names, passed.specs, rows, within_ms)
                    if not self._lines[replica].send(asked, passed.frames):
                        broken.append(replica)
                case GoesBack(number):
                    self._back.append((self._passed.pop(number), effect))
        for gone in self._lines.keys() - set(self.passing.known):
            line = self._lines.pop(gone)
            self._poller.unregister(line.socket)
            self._poller.unregister(line.monitor)
            line.close()
        for replica in broken:
            self._step(on.Broke(replica))

    def close(self) -> None:
        """No connection is left."""
        for line in self._lines.values():
            line.close()
        self._lines = {}


def _now() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000)
