"""One role process: its channel, its log, its life and its end."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dmi_node import clock
from dmi_protocol import limits
from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import Assignment, Bound, Exited, FromRole, Moving, RoleEvent, Started, Stop, ToRole
from dmi_wire.child import DESCRIPTOR

_LENGTH_BYTES = 4
_PIECE = 1 << 16
_MODULES = {"worker": "dmi.run.worker", "server": "dmi_node.roles.server"}
_KEPT = {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES"}
"""What of the daemon's environment a role process sees."""

Happened = Callable[[RoleEvent], None]


def environment(descriptor: int, source: Mapping[str, str]) -> dict[str, str]:
    """A role process's environment: nothing of DMI's own but the channel's number."""
    kept = {name: value for name, value in source.items() if name in _KEPT or name.startswith("PYTHON")}
    return kept | {DESCRIPTOR: str(descriptor), "PYTHONUNBUFFERED": "1"}


class RoleProcess:
    """Start it with ``run``, which returns when the process is gone. Everything it says goes to ``happened``."""

    def __init__(self, assignment: Assignment, happened: Happened) -> None:
        self._assignment = assignment
        self._happened = happened
        self._directory = Path(assignment.directory)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._moved_at: Instant | None = None
        self._stalled = False
        self._stop_after_ms: int | None = None

    async def run(self) -> None:
        """The whole life of the process; ends with ``Exited``."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                _MODULES[self._assignment.key.role],
                cwd=self._directory / "work",
                env=environment(theirs.fileno(), os.environ),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._happened(Started(self._process.pid))
        self.tell(self._assignment)
        if self._stop_after_ms is not None:
            self.stop(self._stop_after_ms)
        assert self._process.stdout is not None
        log = asyncio.create_task(self._log(self._process.stdout))
        ear = asyncio.create_task(self._listen(reader))
        watch = asyncio.create_task(self._watch())
        try:
            code = await self._process.wait()
            await asyncio.wait([ear, log], timeout=5)
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            for task in (log, ear, watch):
                task.cancel()
            await asyncio.gather(log, ear, watch, return_exceptions=True)
            self._writer.close()
        self._happened(Exited(max(code, 0), max(-code, 0), self._stalled))

    def tell(self, message: ToRole) -> None:
        """Say something to it; nobody hears when it is gone."""
        if self._writer is not None and not self._writer.is_closing():
            body = encode_struct(message)
            self._writer.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)

    def stop(self, grace_ms: int) -> None:
        """End it: a word, TERM, and KILL after ``grace_ms``."""
        self._stop_after_ms = grace_ms
        if self._process is None or self._process.returncode is not None:
            return
        self.tell(Stop())
        self._signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(grace_ms / 1000, self.kill)

    def kill(self) -> None:
        """End it now, with all that it started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """To the process group: a script may have started processes of its own."""
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
                if length > limits.MESSAGE_BYTES:
                    self.kill()
                    return
                message: FromRole = decode_struct(await reader.readexactly(length), FromRole)
                self._moved_at = clock.now()
                if not isinstance(message, Moving):
                    if isinstance(message, Bound) and self._process is not None and message.pid != self._process.pid:
                        self.kill()
                    self._happened(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except RemoteProtocolError:
            self.kill()

    async def _watch(self) -> None:
        """A process that was seen moving and does not move any more is ended."""
        while True:
            await asyncio.sleep(limits.ROLE_BEAT_MS / 1000)
            if self._moved_at is not None and clock.now() - self._moved_at > limits.ROLE_STALLED_MS:
                self._stalled = True
                self.kill()
                return

    async def _log(self, output: asyncio.StreamReader) -> None:
        """All that it prints, up to a bound."""
        written = 0
        with (self._directory / "log").open("ab", buffering=0) as file:
            while piece := await output.read(_PIECE):
                if written < limits.LOG_BYTES:
                    file.write(piece[: limits.LOG_BYTES - written])
                    written += len(piece)
                    if written >= limits.LOG_BYTES:
                        file.write(b"\n[the log is full; the rest is left out]\n")
