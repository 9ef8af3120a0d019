"""The process of a deployment's replica: ``python -m dmi.serve.replica``, a child of the daemon.

It takes batches from gateways and has them computed, one after another, by a child of its own, so that it outlives whatever a
request does to the process that computes: the gateway is told which batch that was, all others are computed by the next process.
"""

import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

import msgspec
import zmq

from dmi.infer.replica import lacking_memory
from dmi.serve.computing import ComputingProcess, EndedError, FailedError, Outputs
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.frames import check_payload
from dmi_protocol.messages.data import DataMessage
from dmi_protocol.messages.roles import Bound, ReplicaLaunch
from dmi_protocol.messages.serving import Broken, Busy, Compute, Computed, Greet
from dmi_wire.bulk import Context, DataListener, Delivery
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair

_TRIES = 3
"""So often a process may end without having computed anything since the last one: others may do better."""
_LATE_S = 0.5
"""Beyond the time that anybody waits for a batch."""


class Batch(msgspec.Struct):
    """A batch of a gateway. ``gives_up_at`` is when nobody waits for it any more; ``number`` is our own."""

    gateway: bytes
    message: Compute
    frames: tuple[memoryview, ...]
    gives_up_at: float
    number: int = 0

    @property
    def rows(self) -> int:
        """How many it has."""
        return sum(self.message.rows)


class Replica:
    """One loop: nothing in it waits for the computing process."""

    def __init__(self, child: Child, launch: ReplicaLaunch, listener: DataListener) -> None:
        self._child = child
        self._launch = launch
        self._listener = listener
        self._process: ComputingProcess | None = None
        self._queue: deque[Batch] = deque()
        self._told: deque[Batch] = deque()
        """What the computing process has in hand; it computes the first."""
        self._gateways: dict[bytes, float] = {}
        """Who has greeted, under its full name, and when it was last seen there."""
        self._most = 0
        self._next_number = 1
        self._deaths = 0
        """Of processes that have computed nothing."""
        self._beat_at = 0.0
        self._is_leaving = False
        self._poller = zmq.Poller()
        listener.register(self._poller)
        self._poller.register(child.fd, zmq.POLLIN)

    def leave(self) -> None:
        """End as soon as all that is in hand is computed."""
        self._is_leaving = True

    def start(self) -> None:
        """The model is in memory when it returns. Raises ``FailedError`` and ``EndedError``."""
        self._begin()
        while self._process is not None and not self._process.is_ready:
            self._process.hear()

    def run(self) -> None:
        """Until it has left. Raises ``FailedError`` and ``EndedError`` when nothing can be computed here any more."""
        while not (self._is_leaving and not self._queue and not self._told):
            ready = {source for source, _ in self._poller.poll(limits.REPLICA_BEAT_MS // 2)}
            if not ready or ready - {self._listener.socket, self._computing.fd}:
                self._listener.authenticate()
                self._hear_of_gateways()
            if self._listener.socket in ready:
                self._take_in()
            if self._computing.fd in ready:
                self._hear()
            self._go_on()
            self._look()
        self._beat()

    # Gateways

    def _hear_of_gateways(self) -> None:
        fleet = self._child.fleet()
        if fleet is not None:
            names = {each.public_key: f"gateway-{each.key.index}".encode("ascii") for each in fleet.gateways}
            self._listener.admit(names)
            known = set(names.values())
            self._gateways = {name: at for name, at in self._gateways.items() if name.partition(b"/")[0] in known}
            self._most = limits.REPLICA_BATCHES * max(1, len(names))

    def _take_in(self) -> None:
        while True:
            try:
                delivery = self._listener.receive()
                if delivery is None:
                    return
                self._take(delivery)
            except RemoteProtocolError as error:
                print(f"refused: {error}", file=sys.stderr, flush=True)

    def _take(self, delivery: Delivery) -> None:
        self._gateways[delivery.sender] = time.monotonic()
        match delivery.message:
            case Greet():
                self._listener.send(delivery.sender, Busy(self._waiting))
            case Compute() as message:
                check_payload(message.tensors, delivery.frames)
                if len(self._queue) >= 4 * self._most or len(message.names) != len(message.tensors):
                    raise RemoteProtocolError("more batches than a gateway may give, or tensors without a name")
                until = time.monotonic() + message.within_ms / 1000 + _LATE_S
                self._queue.append(Batch(delivery.sender, message, delivery.frames, until))
            case _:
                raise RemoteProtocolError(f"a {type(delivery.message).__name__} from a gateway")

    @property
    def _waiting(self) -> int:
        return sum(batch.rows for batch in (*self._queue, *self._told))

    def _look(self) -> None:
        """Now and then: say that we are here, and see whether the process that computes moves."""
        now = time.monotonic()
        if now - self._beat_at < limits.REPLICA_BEAT_MS / 1000:
            return
        self._beat_at = now
        self._listener.authenticate()
        self._beat()
        if self._told and now >= self._told[0].gives_up_at:
            self._died("it was not computed in its time, and the process that computed it was ended")
        elif self._computing.has_stopped:
            self._died("it stopped the process that computed it")

    def _beat(self) -> None:
        for gateway in list(self._gateways):
            self._say(gateway, Busy(self._waiting))

    def _say(self, gateway: bytes, message: DataMessage, frames: tuple[bytes, ...] = ()) -> None:
        """A gateway that does not take in what it is told has other replicas to ask."""
        try:
            if self._listener.send(gateway, message, frames) is None:
                self._gateways.pop(gateway, None)
        except zmq.Again:
            self._gateways.pop(gateway, None)

    # The process that computes

    @property
    def _computing(self) -> ComputingProcess:
        assert self._process is not None
        return self._process

    def _begin(self) -> None:
        self._process = ComputingProcess(self._launch)
        self._poller.register(self._process.fd, zmq.POLLIN)

    def _go_on(self) -> None:
        """It has one batch to compute and the next one in hand; those that nobody waits for any more are left out."""
        process = self._computing
        while process.is_ready and self._queue and len(self._told) < limits.COMPUTING_BATCHES:
            batch = self._queue.popleft()
            if time.monotonic() >= batch.gives_up_at:
                continue
            batch.number, self._next_number = self._next_number, self._next_number + 1
            message = batch.message
            try:
                process.say(batch.number, message.names, message.tensors, batch.frames, message.rows)
            except OSError as error:
                text = f"this host has no memory for it: {error}"
                rejected = tuple((nth, text) for nth in range(len(message.rows)))
                self._say(
                    batch.gateway, Computed(message.batch, self._launch.model.id, (), (), rejected, self._waiting)
                )
                continue
            self._told.append(batch)

    def _hear(self) -> None:
        process = self._computing
        try:
            while process.has_something():
                outputs = process.hear()
                if outputs is not None:
                    self._answer(outputs)
        except EndedError as error:
            self._died(str(error))

    def _answer(self, outputs: Outputs) -> None:
        batch = self._told.popleft()
        if batch.number != outputs.batch:
            raise FailedError("model", f"batch {outputs.batch} was answered where {batch.number} was asked")
        self._deaths = 0
        answer = Computed(
            batch.message.batch, outputs.version, outputs.names, outputs.specs, outputs.rejected, self._waiting
        )
        self._say(batch.gateway, answer, outputs.frames)

    def _died(self, how: str) -> None:
        """What it was computing is to blame; what it had in hand beside that was not begun."""
        print(how, file=sys.stderr, flush=True)
        self._poller.unregister(self._computing.fd)
        self._computing.close()
        self._deaths += 1
        if self._told:
            culprit = self._told.popleft()
            self._say(culprit.gateway, Broken(culprit.message.batch, how, self._waiting))
            self._deaths = 0
        self._queue.extendleft(reversed(self._told))
        self._told.clear()
        if self._deaths >= _TRIES:
            raise EndedError(how)
        self._begin()

    def close(self) -> None:
        """No process is left."""
        if self._process is not None:
            self._process.close()


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(ReplicaLaunch)
    child.start()
    lacking = lacking_memory(launch.model, Path("/proc/meminfo").read_text())
    if lacking:
        child.fail("memory", lacking, starting=True)
    context: Context = zmq.Context()
    keys = KeyPair.make()
    try:
        listener = DataListener(context, keys, launch.host, launch.ports)
    except OSError as error:
        child.fail("server", str(error), starting=True)
    replica = Replica(child, launch, listener)
    signal.signal(signal.SIGTERM, lambda *_: replica.leave())
    try:
        replica.start()
        child.tell(Bound(listener.address, keys.public, os.getpid()))
    except FailedError as error:
        child.fail(error.kind, str(error), starting=True)
    except EndedError as error:
        child.fail("compute-died", f"the model cannot be loaded: {error}", starting=True)
    _live(child, replica, context, listener)


def _live(child: Child, replica: Replica, context: Context, listener: DataListener) -> NoReturn:
    try:
        replica.run()
    except FailedError as error:
        replica.close()
        child.fail(error.kind, str(error), starting=False)
    except EndedError as error:
        child.fail("compute-died", f"the process that computes ends again and again: {error}", starting=False)
    replica.close()
    listener.close(linger_ms=1_000)
    context.term()
    child.end(0)


if __name__ == "__main__":
    main()
