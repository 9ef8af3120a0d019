"""The process of a deployment's replica: ``python -m dmi.serve.replica``, a child of the daemon.

It takes batches from gateways and has them computed by children of its own, one for each version of the model, so that it
outlives whatever a request does to the process that computes: the gateway is told which batch that was, all others are computed
by the next process. A new version is loaded by another child while the old one computes; batches go to the new one from then on,
and the old one ends with the last batch that it has.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import zmq
from msgspec.structs import replace

from dmi.infer.replica import lacking_memory
from dmi.serve.computing import EndedError, FailedError, Outputs
from dmi.serve.lane import Batch, Ended, Lane
from dmi.serve.next_stage import NextStage, Passed
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.frames import check_payload
from dmi_protocol.messages.data import DataMessage
from dmi_protocol.messages.roles import Bound, Fleet, ReplicaLaunch, Unusable
from dmi_protocol.messages.serving import Broken, Busy, Compute, Computed, Declined, Greet, Shared
from dmi_protocol.serving.lanes import needed, offered
from dmi_wire.arena import Reader, place
from dmi_wire.bulk import Buffer, Context, DataListener, Delivery
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair

_SEGMENTS = 4 * (limits.REPLICA_BATCHES + 1)
"""Of gateways on this host; more than a few are there only while one takes the place of another."""
_LATE_S = 0.5
"""Beyond the time that anybody waits for a batch."""


class Worked:
    """Which share of the time something was computed."""

    def __init__(self, now: float) -> None:
        self._since = self._at = now
        self._busy_s = 0.0
        self._is_busy = False

    def mark(self, now: float, *, is_busy: bool) -> None:
        """From now on it is so."""
        self._busy_s += (now - self._at) * self._is_busy
        self._at, self._is_busy = now, is_busy

    def share(self, now: float) -> float:
        """Since this was asked last."""
        self.mark(now, is_busy=self._is_busy)
        share = self._busy_s / max(now - self._since, 1e-6)
        self._since, self._busy_s = now, 0.0
        return round(min(share, 1.0), 3)


class Replica:
    """One loop: nothing in it waits for a computing process."""

    def __init__(
        self, child: Child, launch: ReplicaLaunch, listener: DataListener, context: Context, keys: KeyPair
    ) -> None:
        self._child = child
        self._launch = launch
        self._listener = listener
        self._lanes: dict[str, Lane] = {}
        """By version; those that are wanted, and those that end."""
        self._wanted: tuple[str, ...] = (launch.model.id,)
        self._gateways: dict[bytes, float] = {}
        """Who has greeted, under its full name, and when it was last seen there."""
        self._most = 0
        self._refused = 0
        """How often it was said that a version cannot be loaded."""
        self._beat_at = time.monotonic()
        self._worked = Worked(self._beat_at)
        self._share = 0.0
        """Of the time between the last two beats: how much of it something was computed."""
        self._is_leaving = False
        self._poller = zmq.Poller()
        listener.register(self._poller)
        self._poller.register(child.fd, zmq.POLLIN)
        self._polled: dict[str, int] = {}
        """By version: the descriptor that is polled."""
        later = len(launch.model.content.stages) - launch.stage - 1
        self._next: NextStage | None = None
        """Who goes on with what our stage has computed."""
        if later > 0:
            self._next = NextStage(context, keys, launch.key.name.encode("ascii"), later, self._poller)
        self._given: dict[bytes, tuple[str, ...]] = {}
        """By replica of the stage before: with which versions it may still give something."""
        self._reader = Reader(_SEGMENTS)
        """Of the memory of gateways on this host."""
        self._said: tuple[str, ...] = ()
        """The versions that we said we have."""

    def leave(self) -> None:
        """End as soon as all that is in hand is computed."""
        self._is_leaving = True

    def start(self) -> None:
        """The model is in memory when it returns. Raises ``FailedError`` and ``EndedError``."""
        lane = self._lanes[self._launch.model.id] = Lane(self._launch)
        lane.start()

    def run(self) -> None:
        """Until it has left. Raises ``FailedError`` and ``EndedError`` when nothing can be computed here any more."""
        while not (self._is_leaving and not self._batches):
            self._poll_lanes()
            wait_ms = limits.REPLICA_BEAT_MS // 2
            ready = {source for source, _ in self._poller.poll(self._next.wait_ms(wait_ms) if self._next else wait_ms)}
            if not ready or ready - {self._listener.socket, *self._polled.values()}:
                self._listener.authenticate()
                self._hear_of_the_fleet()
            if self._listener.socket in ready:
                self._take_in()
            self._hand_back()
            for version, lane in list(self._lanes.items()):
                self._go_on(version, lane, is_heard=self._polled.get(version) in ready)
            self._hand_back()
            self._worked.mark(time.monotonic(), is_busy=self._batches > 0)
            if self._versions != self._said:
                self._beat()  # gateways wait for it
            self._look()
        self._beat()

    @property
    def _batches(self) -> int:
        """All that we were given and have not answered."""
        return sum(lane.batches for lane in self._lanes.values()) + (self._next.passing.batches if self._next else 0)

    # Versions

    def _poll_lanes(self) -> None:
        """A process that was started anew has another descriptor."""
        wanted = {version: lane.fd for version, lane in self._lanes.items()}
        if wanted != self._polled:
            for descriptor in set(self._polled.values()) - set(wanted.values()):
                self._poller.unregister(descriptor)
            for descriptor in wanted.values():
                self._poller.register(descriptor, zmq.POLLIN)
            self._polled = wanted

    def _take_versions(self, fleet: Fleet) -> None:
        """Load what is new; what is not wanted any more ends once a wanted one can compute."""
        if fleet.versions is None:
            return
        self._wanted = tuple(ref.id for ref in fleet.versions.all)
        for ref, files in zip(fleet.versions.all, fleet.files, strict=True):
            if ref.id not in self._lanes:
                self._lanes[ref.id] = Lane(replace(self._launch, model=ref, files=files))

    @property
    def _ready(self) -> list[str]:
        """Those in memory here."""
        return [version for version, lane in self._lanes.items() if lane.is_ready]

    @property
    def _versions(self) -> tuple[str, ...]:
        """Those that can be asked for."""
        later = self._next.passing.versions if self._next is not None else None
        return offered(self._ready, self._wanted, later, is_first=not self._launch.stage)

    def _retire(self) -> None:
        """Lanes that are not wanted, and have nothing to do any more."""
        kept = needed(self._wanted, self._versions, self._given.values(), is_first=not self._launch.stage)
        for version, lane in list(self._lanes.items()):
            is_passed_on = self._next is not None and self._next.passing.has(version)
            if version not in kept and not lane.batches and not is_passed_on:
                lane.close()
                del self._lanes[version]
        if self._next is not None:
            self._next.may_give(tuple(self._lanes))

    def _go_on(self, version: str, lane: Lane, *, is_heard: bool) -> None:
        was_ready = lane.is_ready
        try:
            if is_heard:
                self._tell(lane.hear())
            if self._next is None or not self._next.passing.is_full:
                self._tell(lane.go_on())
        except (FailedError, EndedError) as error:
            self._fail(version, lane, error)
            return
        if lane.is_ready and not was_ready:
            self._retire()

    def _fail(self, version: str, lane: Lane, error: FailedError | EndedError) -> None:
        """What could never be loaded here is that version's fault; where another one can compute, that goes on."""
        others = [other for other in self._ready if other != version]
        if lane.has_loaded or not others:
            raise error
        lane.close()
        del self._lanes[version]
        self._wanted = tuple(other for other in self._wanted if other != version) or tuple(others)
        self._refused += 1
        self._child.tell(Unusable(version, str(error), self._refused))

    # Gateways

    def _hear_of_the_fleet(self) -> None:
        fleet = self._child.fleet()
        if fleet is None:
            return
        names = {each.public_key: each.key.name.encode("ascii") for each in fleet.gateways}
        self._listener.admit(names)
        known = set(names.values())
        self._gateways = {name: at for name, at in self._gateways.items() if name.partition(b"/")[0] in known}
        self._given = {name: given for name, given in self._given.items() if name.partition(b"/")[0] in known}
        self._most = limits.REPLICA_BATCHES * max(1, len(names)) * (len(self._launch.model.content.stages) or 1)
        self._take_versions(fleet)
        if self._next is not None:
            self._next.told(fleet)

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
            case Greet(versions):
                if self._launch.stage:
                    self._given[delivery.sender] = versions
                self._say(delivery.sender, self._busy())
            case Compute() as message:
                frames = delivery.frames if message.shared is None else self._mapped(message, message.shared)
                if frames is None:
                    self._say(delivery.sender, Declined(message.batch, self._waiting, self._versions))
                    return
                check_payload(message.tensors, frames)
                if len(message.names) != len(message.tensors):
                    raise RemoteProtocolError("tensors without a name")
                lane = self._lanes.get(message.version) if message.version in self._versions else None
                if lane is None or self._is_leaving or self._batches >= 4 * self._most:
                    self._say(delivery.sender, Declined(message.batch, self._waiting, self._versions))
                    return
                until = time.monotonic() + message.within_ms / 1000 + _LATE_S
                lane.add(Batch(delivery.sender, message, frames, until))
            case _:
                raise RemoteProtocolError(f"a {type(delivery.message).__name__} from a gateway")

    def _mapped(self, message: Compute, shared: Shared) -> tuple[memoryview, ...] | None:
        """The inputs in a gateway's memory; None when that is gone, with the gateway or because it waits for us no more."""
        places = zip(place(message.tensors)[0], message.tensors, strict=True)
        try:
            views = [self._reader.view(shared.segment, shared.size, at, spec.length_bytes) for at, spec in places]
        except OSError:
            return None
        return tuple(views)

    def _given_back(self, message: Compute, outputs: Outputs) -> bool:
        """The outputs are in the gateway's memory, where it has made room for them."""
        offsets, size = place(outputs.specs)
        shared = message.shared
        if shared is None or not size or shared.outputs_at + size > shared.size:
            return False
        try:
            for offset, frame in zip(offsets, outputs.frames, strict=True):
                room = self._reader.view(shared.segment, shared.size, shared.outputs_at + offset, len(frame))
                room[:] = frame
        except OSError:
            return False
        return True

    @property
    def _waiting(self) -> int:
        return sum(lane.rows for lane in self._lanes.values()) + (self._next.passing.rows if self._next else 0)

    def _look(self) -> None:
        """Now and then: say that we are here, and see whether the processes that compute move."""
        now = time.monotonic()
        if now - self._beat_at < limits.REPLICA_BEAT_MS / 1000:
            return
        self._beat_at = now
        self._share = self._worked.share(now)
        self._listener.authenticate()
        self._beat()
        for version, lane in list(self._lanes.items()):
            try:
                self._tell(lane.look())
            except (FailedError, EndedError) as error:
                self._fail(version, lane, error)
        self._retire()

    def _busy(self) -> Busy:
        return Busy(self._waiting, self._versions, self._share)

    def _beat(self) -> None:
        self._said = self._versions
        for gateway in list(self._gateways):
            self._say(gateway, self._busy())

    def _tell(self, ended: Iterable[Ended]) -> None:
        """The gateway hears what became of its batch, or the next stage has it."""
        for each in ended:
            message, outputs = each.batch.message, each.outputs
            if outputs is not None and self._next is not None and not outputs.final:
                self._next.pass_on(Passed(each.batch, outputs.version, outputs.names, outputs.specs, outputs.frames))
            elif outputs is not None:
                is_shared = self._given_back(message, outputs)
                answer: DataMessage = Computed(
                    message.batch,
                    outputs.version,
                    outputs.names,
                    outputs.specs,
                    outputs.rejected,
                    self._waiting,
                    is_shared,
                )
                self._say(each.batch.gateway, answer, () if is_shared else outputs.frames)
            elif each.refused:
                rejected = tuple((nth, each.refused) for nth in range(len(message.rows)))
                self._say(each.batch.gateway, Computed(message.batch, message.version, (), (), rejected, self._waiting))
            elif each.how:
                self._say(each.batch.gateway, Broken(message.batch, each.how, self._waiting))
            else:
                self._say(each.batch.gateway, Declined(message.batch, self._waiting, self._versions))

    def _hand_back(self) -> None:
        """Whoever gave us a batch hears what became of it further on."""
        for passed, back in self._next.hear() if self._next is not None else ():
            gateway, batch, computed = passed.batch.gateway, passed.batch.message.batch, passed.computed
            if back.is_computed and computed is not None:
                self._say(gateway, replace(computed, batch=batch, waiting=self._waiting), passed.outputs)
            elif back.has_died:
                self._say(gateway, Broken(batch, passed.how, self._waiting))
            else:
                self._say(gateway, Declined(batch, self._waiting, self._versions))

    def _say(self, gateway: bytes, message: DataMessage, frames: Sequence[Buffer] = ()) -> None:
        """A gateway that does not take in what it is told has other replicas to ask."""
        try:
            if self._listener.send(gateway, message, frames) is None:
                self._gateways.pop(gateway, None)
        except zmq.Again:
            self._gateways.pop(gateway, None)

    def close(self) -> None:
        """No process is left."""
        for lane in self._lanes.values():
            lane.close()
        if self._next is not None:
            self._next.close()


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(ReplicaLaunch)
    child.start()
    lacking = lacking_memory(launch.model.content.held_bytes(launch.stage), Path("/proc/meminfo").read_text())
    if lacking:
        child.fail("memory", lacking, starting=True)
    context: Context = zmq.Context()
    keys = KeyPair.make()
    try:
        listener = DataListener(context, keys, launch.host, launch.ports)
    except OSError as error:
        child.fail("server", str(error), starting=True)
    replica = Replica(child, launch, listener, context, keys)
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
        replica.close()
        child.fail("compute-died", f"the process that computes ends again and again: {error}", starting=False)
    replica.close()
    listener.close(linger_ms=1_000)
    context.term()
    child.end(0)


if __name__ == "__main__":
    main()
