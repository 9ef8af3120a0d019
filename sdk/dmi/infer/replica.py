"""The replica's process: ``python -m dmi.infer.replica``, a child of the daemon that has slices computed by a child of its own.

Its working directory holds the configuration, the listing of the inputs, and the files of the user's own functions. It never
imports torch, and so outlives whatever the model, a decoder or an input does to the process that computes.
"""

import hashlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from dmi.infer.config import Config
from dmi.infer.inputs import Pack
from dmi.infer.line import GoneError, Line
from dmi.infer.plan import CONFIG
from dmi.infer.started import StartedProcess, computed_ticks, how_ended
from dmi_protocol import limits
from dmi_protocol.identity import BlobHash
from dmi_protocol.kinds.batch.queue import SliceQueue
from dmi_protocol.messages.roles import BatchLaunch, Bound, Machine, SliceWritten
from dmi_protocol.model import ModelContent
from dmi_wire.child import Child
from dmi_wire.host_memory import available_bytes
from dmi_wire.keys import KeyPair

_NO_PORT = 0
_DIED = "compute-died"
"""Others may do better: they may have more memory."""


class DiedError(Exception):
    """The computing process has ended without a word. The text says how."""


class FailedError(Exception):
    """It has said why it cannot go on."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Computer:
    """The process that computes. ``begin`` and ``next`` raise ``DiedError`` and ``FailedError``; ``begin`` starts another one
    where the last one has died."""

    def __init__(self, launch: BatchLaunch) -> None:
        self._launch = launch
        self._process: StartedProcess | None = None
        self._line: Line | None = None
        self.machine: Machine = ()
        """What of this host may change the bits of a result."""

    def start(self) -> None:
        """The model is in memory when it returns."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = StartedProcess(theirs)
        self._line = Line(ours)
        self._say(launch=msgspec.to_builtins(self._launch))
        self.machine = tuple((str(name), str(value)) for name, value in self._hear()["machine"])

    def begin(
        self,
        first: int,
        last: int,
        masked: dict[int, str],
        path: Path,
        offset: int,
        pack: Pack | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """From now on batches of the inputs ``first`` to ``last``; those that are ``masked`` are error rows, with this cause. A
        process that has died since the last batch is to blame for nothing: another one is started. With ``alone`` it begins no
        batch before it is asked for that."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        self.start()
        self._say(
            begin=[first, last], masked=list(masked.items()), path=str(path), offset=offset, pack=pack, alone=alone
        )

    def next(self) -> tuple[int, int]:
        """One batch is in the file: where it ends, and how many of its rows are errors."""
        self._say(next=True)
        found = self._hear()
        return found["offset"], found["failed"]

    def close(self) -> None:
        """No process is left."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()
            self._process = None

    def _say(self, **value: Any) -> None:
        assert self._line is not None
        try:
            self._line.say(**value)
        except GoneError:
            self._died()

    def _hear(self) -> dict[str, Any]:
        """The next answer. A process that was not heard for ``limits.ROLE_STALLED_MS``, and has used no processor time either,
        has stopped and is ended."""
        assert self._line is not None
        assert self._process is not None
        try:
            while True:
                used = computed_ticks(self._process.pid)
                if self._line.is_quiet(limits.ROLE_STALLED_MS / 1000):
                    if computed_ticks(self._process.pid) > used:
                        continue
                    self.close()
                    raise DiedError("it stopped the process that computed it")
                found = self._line.hear()
                if "moving" not in found:
                    break
        except GoneError:
            self._died()
        if "error" in found:
            raise FailedError(found["error"], found["text"])
        return found

    def _died(self) -> NoReturn:
        assert self._process is not None
        assert self._line is not None
        self._line.close()
        code = self._process.wait()
        self._process = None
        raise DiedError(how_ended(code))


class Replica:
    """Has one slice after another computed. What was begun and is not to be computed any more is given up."""

    def __init__(self, child: Child, launch: BatchLaunch, computer: Computer, batch_size: int) -> None:
        self._child = child
        self._launch = launch
        self._computer = computer
        self._batch_size = batch_size
        self._directory = Path(launch.directory)
        self._queue = SliceQueue()
        self._pack: Pack | None = None
        """Where the inputs of the slice that is being computed are, if they travel."""

    def run(self) -> NoReturn:
        """Until the daemon ends us."""
        while True:
            self._hear(wait=self._queue.first is None)
            if (first := self._queue.first) is not None:
                self._compute(first)

    def _hear(self, *, wait: bool) -> None:
        found = self._child.slices(wait=wait)
        if found is not None:
            self._queue.told(found)

    def _compute(self, slice_: int) -> None:
        size = self._launch.slice_inputs
        first, last = slice_ * size, min((slice_ + 1) * size, self._launch.inputs)
        path = self._directory / f"slice-{slice_}"
        path.unlink(missing_ok=True)
        offset, failed, masked, alone = 0, 0, dict[int, str](), False
        inputs = self._queue.file(slice_)
        self._pack = Pack(inputs, first) if inputs is not None else None
        self._computer.begin(first, last, masked, path, offset, self._pack)
        while first < last:
            try:
                offset, bad = self._computer.next()
            except DiedError as error:
                if alone or not self._launch.model.content.stages:
                    masked |= self._culprits(first, min(first + self._batch_size, last), str(error))
                alone = True  # it may have died of a batch that it computed beside this one
                self._computer.begin(first, last, masked, path, offset, self._pack, alone=alone)
                continue
            first, failed = first + self._batch_size, failed + bad
            self._hear(wait=False)
            if not self._queue.wants(slice_):
                path.unlink()
                return
        with path.open("rb") as file:
            blob = BlobHash(hashlib.file_digest(file, "sha256").hexdigest())
        self._child.tell(SliceWritten(self._queue.decided, slice_, blob, str(path), offset, failed))
        self._queue.written(slice_)

    # An input that ends a process

    def _culprits(self, first: int, last: int, cause: str) -> dict[int, str]:
        """The inputs of a batch that end the process which computes them, found by halving; nobody, where it was chance. Raises
        ``FailedError`` when the first, the last and one between them do so, each alone: then it is the model."""
        places = range(first, last)
        some = {places[0], places[len(places) // 2], places[-1]}
        if len(some) == 3 and all(self._dies(places, (place,)) is not None for place in sorted(some)):
            raise FailedError("model", f"the model ends its process whatever it is given: {cause}")
        return self._halved(places, places, cause)

    def _halved(self, batch: range, places: Sequence[int], cause: str) -> dict[int, str]:
        if len(places) == 1:
            return {places[0]: cause}
        found: dict[int, str] = {}
        for half in (places[: len(places) // 2], places[len(places) // 2 :]):
            why = self._dies(batch, half)
            if why is not None:
                found |= self._halved(batch, half, why)
        return found

    def _dies(self, batch: range, places: Sequence[int]) -> str | None:
        """Why a batch with these inputs, and zeros for all others, ends its process; None when it does not."""
        masked = {place: "" for place in batch if place not in places}
        try:
            self._computer.begin(batch.start, batch.stop, masked, self._directory / "trial", 0, self._pack, alone=True)
            self._computer.next()
        except DiedError as error:
            return str(error)
        return None


def held_bytes(content: ModelContent) -> int:
    """What a replica has of the model in memory at once: of stages, which it computes in turn, the largest."""
    return max(content.held_bytes(stage) for stage in range(len(content.stages) or 1))


def lacking_memory(held_bytes: int, meminfo: str) -> str:
    """Why one replica more, with a model of this size, does not fit into this host's memory; nothing where it does."""
    left, need = available_bytes(meminfo), held_bytes + limits.REPLICA_BYTES
    if left is None or left >= need:
        return ""
    return f"it needs about {need >> 20:,} MiB, and this host has {left >> 20:,} MiB left"


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(BatchLaunch)
    child.start()
    keys = KeyPair.make()
    lacking = lacking_memory(held_bytes(launch.model.content), Path("/proc/meminfo").read_text())
    if lacking:
        child.fail("memory", lacking, starting=True)
    computer = Computer(launch)
    batch_size = msgspec.json.decode(Path(CONFIG).read_bytes(), type=Config).batch_size
    try:
        computer.start()
    except FailedError as error:
        child.fail(error.kind, str(error), starting=True)
    except DiedError as error:
        child.fail(_DIED, f"the model cannot be loaded: {error}", starting=True)
    child.tell(Bound(f"{launch.host}:{_NO_PORT}", keys.public, os.getpid(), computer.machine))
    _live(child, Replica(child, launch, computer, batch_size))


def _live(child: Child, replica: Replica) -> NoReturn:
    try:
        replica.run()
    except FailedError as error:
        child.fail(error.kind, str(error), starting=False)
    except DiedError as error:
        child.fail(_DIED, f"the process that computes cannot be started again: {error}", starting=False)
    except OSError as error:
        child.fail("disk", str(error), starting=False)


if __name__ == "__main__":
    main()
