"""One version of the model in a replica: its computing process, and the batches that are for it."""

import sys
import time
from collections import deque
from collections.abc import Iterator

import msgspec

from dmi.serve.computing import ComputingProcess, EndedError, FailedError, Outputs
from dmi_protocol import limits
from dmi_protocol.messages.roles import ReplicaLaunch
from dmi_protocol.messages.serving import Compute

_TRIES = 3
"""So often a process may end without having computed anything since the last one: others may do better."""


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


class Ended(msgspec.Struct):
    """What became of a batch: its outputs; or ``how`` its process has died of it, or that its requests are to be computed each
    alone; or ``refused``, for want of memory; or nothing, for nobody waits for it any more."""

    batch: Batch
    outputs: Outputs | None = None
    how: str = ""
    refused: str = ""


class Lane:
    """Nothing in it waits for the computing process, but ``start``. ``fd`` can be read when ``hear`` has something to do."""

    def __init__(self, launch: ReplicaLaunch) -> None:
        self.version = launch.model.id
        self._launch = launch
        self._process = ComputingProcess(launch)
        self._queue: deque[Batch] = deque()
        self._told: deque[Batch] = deque()
        """What the computing process has in hand; it computes the first."""
        self._next_number = 1
        self._deaths = 0
        """Of processes that have computed nothing."""
        self.has_loaded = False
        """Was the model ever in memory?"""

    @property
    def fd(self) -> int:
        """Of the process that there is now."""
        return self._process.fd

    @property
    def is_ready(self) -> bool:
        """Is the model in memory?"""
        return self._process.is_ready

    @property
    def rows(self) -> int:
        """What is to be computed."""
        return sum(batch.rows for batch in (*self._queue, *self._told))

    @property
    def batches(self) -> int:
        """How many are to be computed."""
        return len(self._queue) + len(self._told)

    def start(self) -> None:
        """The model is in memory when it returns. Raises ``FailedError`` and ``EndedError``."""
        while not self._process.is_ready:
            self._process.hear()
        self.has_loaded = True

    def add(self, batch: Batch) -> None:
        """One more."""
        self._queue.append(batch)

    def go_on(self) -> Iterator[Ended]:
        """The process has one batch to compute and the next one in hand; those that nobody waits for any more are left out."""
        while self._process.is_ready and self._queue and len(self._told) < limits.COMPUTING_BATCHES:
            batch = self._queue.popleft()
            if time.monotonic() >= batch.gives_up_at:
                yield Ended(batch)
                continue
            batch.number, self._next_number = self._next_number, self._next_number + 1
            message = batch.message
            try:
                self._process.say(batch.number, message.names, message.tensors, batch.frames, message.rows)
            except OSError as error:
                yield Ended(batch, refused=f"this host has no memory for it: {error}")
            else:
                self._told.append(batch)

    def hear(self) -> Iterator[Ended]:
        """What the process has to say. Raises ``EndedError`` and ``FailedError`` when nothing can be computed here any more."""
        try:
            while self._process.has_something():
                outputs = self._process.hear()
                self.has_loaded = self.has_loaded or self._process.is_ready
                if outputs is not None:
                    yield self._answered(outputs)
        except EndedError as error:
            yield from self._died(str(error))

    def look(self) -> Iterator[Ended]:
        """Now and then: does the process that computes move, and in time?"""
        if self._told and time.monotonic() >= self._told[0].gives_up_at:
            yield from self._died("it was not computed in its time, and the process that computed it was ended")
        elif self._process.is_overdue:
            yield from self._died(f"it was not in memory within {limits.ROLE_START_MS // 1000} seconds")
        elif self._process.has_stopped:
            yield from self._died("it stopped the process that computed it")

    def _answered(self, outputs: Outputs) -> Ended:
        batch = self._told.popleft()
        if batch.number != outputs.batch:
            raise FailedError("model", f"batch {outputs.batch} was answered where {batch.number} was asked")
        self._deaths = 0
        return Ended(batch, how=outputs.apart) if outputs.apart else Ended(batch, outputs)

    def _died(self, how: str) -> Iterator[Ended]:
        """What it was computing is to blame; what it had in hand beside that was not begun."""
        print(how, file=sys.stderr, flush=True)
        was_ready = self._process.is_ready
        self._process.close()
        self._deaths += 1
        if self._told:
            self._deaths = 0
            yield Ended(self._told.popleft(), how=how)
        self._queue.extendleft(reversed(self._told))
        self._told.clear()
        if self._deaths >= _TRIES or not was_ready:
            raise EndedError(how)
        self._process = ComputingProcess(self._launch)

    def close(self) -> None:
        """No process is left."""
        self._process.close()
