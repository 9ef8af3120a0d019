"""The computing process of a deployment's replica, as the replica sees it: it is told, heard and ended, and never waited for."""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from dmi.infer.line import GoneError, Line
from dmi.infer.started import StartedProcess, computed_ticks, how_ended
from dmi_protocol import limits
from dmi_protocol.messages.roles import ReplicaLaunch
from dmi_protocol.tensor_spec import TensorSpec
from dmi_wire.arena import Arenas, Reader, place


class FailedError(Exception):
    """It has said why it cannot go on."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class EndedError(Exception):
    """It has ended without a word. The text says how."""


class Outputs(msgspec.Struct, frozen=True):
    """What became of a batch; ``frames`` has the bytes of each tensor, which are ours. They are ``final`` where no later stage
    need see them. ``apart`` says why its requests must be computed each alone, where they must."""

    batch: int
    version: str
    names: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    rejected: tuple[tuple[int, str], ...]
    frames: tuple[bytes, ...]
    final: bool
    apart: str


class ComputingProcess:
    """One. ``fd`` can be read when ``hear`` has something to give, or raises."""

    def __init__(self, launch: ReplicaLaunch) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = StartedProcess(theirs)
        self._line = Line(ours)
        self.fd = ours.fileno()
        self._arenas = Arenas()
        self._read = Reader()
        self.is_ready = False
        """Is the model in memory?"""
        self._started_at = self._moved_at = time.monotonic()
        self._ticks = 0
        with suppress(GoneError):
            self._line.say(launch=msgspec.to_builtins(launch))

    def say(
        self,
        batch: int,
        names: Sequence[str],
        specs: Sequence[TensorSpec],
        frames: Sequence[memoryview],
        rows: Sequence[int],
    ) -> None:
        """Compute this. Raises ``OSError`` where there is no memory for it."""
        offsets, size = place(specs)
        name, whole, buffer = self._arenas.next().room(size)
        for offset, frame in zip(offsets, frames, strict=True):
            buffer[offset : offset + frame.nbytes] = frame.cast("B")
        with suppress(GoneError):  # that it has ended is heard
            self._line.say(batch=batch, names=list(names), specs=specs, rows=list(rows), segment=[name, whole])

    def hear(self) -> Outputs | None:
        """The next thing that it says, if that is a batch. Raises ``EndedError`` and ``FailedError``."""
        try:
            found = self._line.hear()
        except GoneError:
            raise EndedError(how_ended(self._process.wait())) from None
        self._moved_at = time.monotonic()
        if "error" in found:
            raise FailedError(found["error"], found["text"])
        if "ready" in found:
            self.is_ready = True
        return self._outputs(found) if "batch" in found else None

    def _outputs(self, found: dict[str, Any]) -> Outputs:
        specs = msgspec.convert(found["specs"], tuple[TensorSpec, ...])
        name, size = found["segment"]
        frames = tuple(
            bytes(self._read.view(name, size, offset, spec.length_bytes))
            for spec, offset in zip(specs, place(specs)[0], strict=True)
        )
        rejected = tuple((int(nth), str(text)) for nth, text in found["rejected"])
        return Outputs(
            found["batch"],
            str(found["version"]),
            tuple(found["names"]),
            specs,
            rejected,
            frames,
            final=bool(found["final"]),
            apart=str(found["apart"]),
        )

    @property
    def has_stopped(self) -> bool:
        """Was it not heard for long, and has used no processor time either?"""
        now = time.monotonic()
        if now - self._moved_at < limits.ROLE_STALLED_MS / 1000:
            return False
        before, self._ticks = self._ticks, computed_ticks(self._process.pid)
        self._moved_at = now if self._ticks > before else self._moved_at
        return self._ticks <= before

    @property
    def is_overdue(self) -> bool:
        """Has it not had the model in memory for longer than anything may take to start?"""
        return not self.is_ready and time.monotonic() - self._started_at >= limits.ROLE_START_MS / 1000

    def has_something(self) -> bool:
        """Can it be heard now?"""
        return not self._line.is_quiet(0)

    def close(self) -> None:
        """No process is left."""
        self._line.close()
        self._process.kill()
        self._arenas.close()
