"""The parameter server's process: ``python -m dmi_node.roles.server``, a child of the daemon.

It carries messages to the shard's machine (``dmi_protocol/training/shard.py``), which decides, and does what it wants
with the tensors (``tensors.py``). One thread does all of it; a second one only talks to the daemon, a third one to the
disk.
"""

import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import zmq

from dmi_node.roles.tensors import Tensors
from dmi_node.roles.writer import Writer
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages import parameters as say
from dmi_protocol.messages.roles import Assignment, Bound, Completed, PartWritten, Roster, Seat
from dmi_protocol.tensor_spec import describe
from dmi_protocol.training import exchange as x
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Release, Subtree, Sum
from dmi_tensor.checkpoint import CorruptPartError, read_part, write_part
from dmi_tensor.tree_sum import DisagreementError
from dmi_wire.bulk import Delivery, Endpoint, Line
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from dmi_wire.memory import keep_freed_memory

_POLL_MS = 1_000
_LINGER_MS = 10_000
"""How long the last words to the workers may take."""


class Server:
    """One shard, its socket and its workers."""

    def __init__(
        self,
        child: Child,
        assignment: Assignment,
        roster: Roster,
        endpoint: Endpoint,
        lines: Mapping[int, Line],
    ) -> None:
        self._child = child
        self._assignment = assignment
        self._roster = roster
        self._endpoint = endpoint
        self._lines = lines
        self._workers = {seat.key.index: seat for seat in roster.workers}
        self._index = assignment.key.index
        shards = [shard for shard, server in enumerate(roster.shards) if server == self._index]
        self._shard = shards[0]
        self._machine = Shard(x.Rostered(roster.generation, tuple(self._workers), roster.lead), self._shard)
        parts = tuple(read_part(Path(path)) for path in assignment.parts)
        is_beside = any(map(self._is_local, self._workers))
        self._tensors = Tensors(self._shard, len(roster.shards), shares_memory=is_beside, parts=parts)
        self._heard = dict.fromkeys(self._workers, _now())
        self._writer = Writer()
        self._is_done = False

    def run(self) -> None:
        """Serve until the shard's work is done."""
        poller = zmq.Poller()
        self._endpoint.register(poller)
        poller.register(self._writer.fd, zmq.POLLIN)
        while not self._is_done:
            poller.poll(_POLL_MS)
            self._endpoint.authenticate()
            self._drain()
            self._tell_written()
            self._lose_patience()
        self._writer.close()

    def _drain(self) -> None:
        """Take all that waits."""
        while not self._is_done:
            try:
                delivery = self._endpoint.receive()
            except RemoteProtocolError as error:
                _refuse(error)
                continue
            if delivery is None:
                return
            try:
                self._take(delivery)
            except RemoteProtocolError as error:
                _refuse(error)
                self._endpoint.send(delivery.sender, say.Declined(self._roster.generation, "peer", str(error)))

    def _take(self, delivery: Delivery) -> None:
        """One message: from another server (norms only), or from a worker under its own name."""
        role, _, number = delivery.sender.partition(b"/")[0].decode("ascii").partition("-")
        index, message = int(number), delivery.message
        if isinstance(message, say.Norms):
            if role != "server" or self._roster.shards[message.shard : message.shard + 1] != (index,):
                raise RemoteProtocolError(f"norms of shard {message.shard} from {role}-{index}")
            self._happened(x.NormsHeard(message.shard, message.generation, message.step, message.squares))
            return
        if role != "worker":
            raise RemoteProtocolError(f"a {type(message).__name__} from {role}-{index}")
        self._heard[index] = _now()
        if isinstance(message, say.Beat):
            self._endpoint.send(delivery.sender, say.Beat(self._roster.generation))
            return
        self._happened(self._event(index, message, delivery.frames))

    def _event(self, worker: int, message: say.ParameterMessage, frames: tuple[memoryview, ...]) -> x.ShardEvent:
        """What a worker's message means to the machine; its tensors are put where handles point."""
        match message:
            case say.Hello(generation, named, fingerprint, definition, shared, shared_bytes):
                if named != worker:
                    raise RemoteProtocolError(f"worker-{worker} says that it is worker-{named}")
                self._tensors.greet(worker, shared if self._is_local(worker) else None, shared_bytes)
                return x.Greeted(worker, generation, fingerprint.fields, definition)
            case say.AskResume(generation):
                return x.ResumeAsked(worker, generation)
            case say.Initial(generation, bucket, specs):
                self._tensors.initialize(bucket, specs, frames)
                return x.Initialized(worker, generation, bucket)
            case say.Begin(generation, step, leaf_sizes, hyper):
                self._tensors.has_mapped(worker)
                return x.Began(worker, generation, step, leaf_sizes, hyper)
            case say.Contribution():
                handle = self._tensors.put(worker, message, frames)
                subtree = Subtree(message.first_leaf, message.leaves)
                return x.Contributed(worker, message.generation, message.step, message.bucket, subtree, handle)
            case say.Pull(generation, version, buckets):
                return x.Pulled(worker, generation, version, buckets)
            case say.Checkpoint(generation, step, extra):
                return x.CheckpointAsked(worker, generation, step, extra)
            case say.AskState(generation, step):
                return x.StateAsked(worker, generation, step)
            case say.Finish(generation, step, extra):
                return x.FinishAsked(worker, generation, step, extra)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is not for a server")

    def _is_local(self, worker: int) -> bool:
        return self._workers[worker].node == self._assignment.node

    def _happened(self, event: x.ShardEvent) -> None:
        for effect in self._machine.step(_now(), event):
            self._do(effect)

    def _do(self, effect: x.ShardEffect) -> None:
        match effect:
            case Sum(left, right):
                self._add(left, right)
            case Release(handle):
                self._tensors.release(handle)
            case x.Measure(step, bucket, handle):
                self._happened(x.Measured(step, bucket, self._tensors.square(bucket, handle)))
            case x.Apply():
                self._tensors.apply(effect)
            case x.Forget():
                pass  # the memory is the next version's; what a socket still holds is waited for in ``apply``
            case x.Open(definition):
                self._open(definition)
            case x.WritePart():
                self._write(effect)
            case x.End():
                self._is_done = True
            case _:
                self._say(effect)

    def _open(self, definition: bytes) -> None:
        try:
            opened = self._tensors.open(definition)
        except CorruptPartError as error:
            self._child.fail("checkpoint", f"the job cannot go on from its checkpoint: {error}", starting=False)
        self._happened(opened)

    def _add(self, left: Handle, right: Handle) -> None:
        try:
            self._tensors.add(left, right)
        except DisagreementError as error:
            line = (
                f"the leaves of step {self._machine.current} disagree about the buffer {error}: make it a function of "
                "the step, or keep it out of the module"
            )
            self._child.fail("disagreement", line, starting=False)

    def _say(self, effect: x.ShardEffect) -> None:
        generation = self._roster.generation
        match effect:
            case x.Welcome(worker, step):
                shared, size = self._tensors.offer(worker)
                self._send(worker, say.Welcome(generation, self._shard, step, shared, size))
            case x.Resume(worker):
                self._send(worker, say.Resume(generation, self._tensors.extra))
            case x.Show(version, bucket, workers):
                for worker in workers:
                    self._show(worker, version, bucket)
            case x.GiveState(worker, step):
                self._give(worker, step)
            case x.TellNorms(step, squares):
                for line in self._lines.values():
                    line.send(say.Norms(generation, step, self._shard, squares))
            case x.Decline(worker, kind, value):
                self._send(worker, say.Declined(generation, kind, f"{kind}: here it is {value}"))
            case x.SayFinished(workers):
                for worker in workers:
                    self._send(worker, say.Finished(generation, self._shard))
            case x.Disagree():
                self._child.fail("disagreement", self._sentence(effect), starting=False)

    def _send(self, worker: int, message: say.ParameterMessage) -> None:
        self._endpoint.send(b"worker-%d" % worker, message)

    def _show(self, worker: int, version: int, bucket: int) -> None:
        shown = self._tensors.show(worker, version, bucket)
        message = say.Show(self._roster.generation, version, bucket, shown.tensors, shown.detail, shown.region)
        self._tensors.lend(bucket, version, self._endpoint.send(b"worker-%d" % worker, message, shown.frames))

    def _write(self, effect: x.WritePart) -> None:
        path = Path(self._assignment.directory) / f"{'final' if effect.final else 'part'}-{effect.step}.safetensors"
        self._writer.write(path, self._tensors.part(effect.step, effect.extra, effect.fingerprint), final=effect.final)

    def _tell_written(self) -> None:
        for part in self._writer.done():
            told = PartWritten(part.step, self._shard, part.blob, str(part.path), part.size_bytes, part.final)
            self._child.tell(told)
            self._happened(x.PartDurable(part.step, part.final))

    def _give(self, worker: int, step: int) -> None:
        """The same bytes as on disk, for the lead's own file."""
        path = Path(self._assignment.directory) / "state.safetensors"
        write_part(path, self._tensors.part(step, b"", ()))
        data = memoryview(path.read_bytes())
        path.unlink()
        message = say.State(self._roster.generation, step, (describe("uint8", (len(data),)),))
        self._endpoint.send(b"worker-%d" % worker, message, [data])

    def _name(self, worker: int) -> str:
        return f"worker-{worker}@{self._workers[worker].node_name}"

    def _sentence(self, found: x.Disagree) -> str:
        """One line that names both hosts and the field."""
        values = f": {found.value or 'nothing'} and {found.other_value or 'nothing'}"
        shown = values if found.value or found.other_value else ""
        other = "the checkpoint" if found.other is None else self._name(found.other)
        return f"{self._name(found.worker)} and {other} differ in {found.field}{shown}"

    def _lose_patience(self) -> None:
        for worker, heard in self._heard.items():
            silent_ms = _now() - heard
            if silent_ms > limits.PEER_SILENT_MS:
                line = f"{self._name(worker)} was not heard for {silent_ms // 1000} s at step {self._machine.current}"
                self._child.fail("peer-silent", line, starting=False)


def _refuse(error: RemoteProtocolError) -> None:
    """A line in the role's log; a peer whose message made no sense is told so and gives up."""
    print(f"refused: {error}", file=sys.stderr, flush=True)


def _now() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000)


def _name(seat: Seat) -> bytes:
    return f"{seat.key.role}-{seat.key.index}".encode("ascii")


def serve(child: Child, assignment: Assignment) -> None:
    """Bind, wait for the roster, serve; returns when the final part is durable and every worker knows."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys = KeyPair.make()
    endpoint = Endpoint(context, keys, assignment.host, assignment.ports)
    child.tell(Bound(endpoint.address, keys.public, os.getpid()))
    roster = child.roster(limits.ROLE_START_MS)
    peers = [*roster.workers, *(seat for seat in roster.servers if seat.key != assignment.key)]
    endpoint.admit({PublicKey(seat.public_key): _name(seat) for seat in peers})
    lines = {
        seat.key.index: Line(context, keys, b"server-%d" % assignment.key.index, seat.address, seat.public_key)
        for seat in roster.servers
        if seat.key != assignment.key and seat.key.index in roster.shards
    }
    Server(child, assignment, roster, endpoint, lines).run()
    for line in lines.values():
        line.close()
    endpoint.close(_LINGER_MS)
    context.term()
    child.tell(Completed())


def main() -> None:
    """The process."""
    child = Child.inherit()
    assignment = child.assignment()
    child.start()
    keep_freed_memory()
    try:
        serve(child, assignment)
    except OSError as error:
        child.fail("server", f"the parameter server cannot go on: {error}", starting=False)
    except Exception:  # noqa: BLE001 (a bug of ours: the daemon gets its traceback, and the process ends)
        child.fail("server", traceback.format_exc(), starting=False)
    child.end(0)


if __name__ == "__main__":
    main()
