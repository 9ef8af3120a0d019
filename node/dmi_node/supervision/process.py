"""One role process: its channel, its log, its life and its end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil

from dmi_node import clock
from dmi_node.home import usual_umask
from dmi_node.storage.logs import LogWriter
from dmi_protocol import limits
from dmi_protocol.address import is_address
from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import is_public_key
from dmi_protocol.jobs.signs import Signs
from dmi_protocol.messages.roles import (
    Bound,
    CaughtUp,
    Completed,
    Exited,
    Failed,
    FromRole,
    Launch,
    Moving,
    Progressed,
    Published,
    Ready,
    ReplicaLaunch,
    RoleEvent,
    Served,
    Started,
    Stop,
    ToRole,
    TrainingLaunch,
    Unheard,
    Unusable,
    Wanted,
    Written,
)
from dmi_wire.channel import framed, read_framed
from dmi_wire.child import DESCRIPTOR, UMASK

_logger = logging.getLogger("dmi.roles")
_PIECE = 1 << 16
_MACHINE_CHARACTERS = 1_024
_READ_OUT_S = 5.0
"""How long the last words of a process that is gone are waited for."""
_MODULES = {
    "worker": "dmi.run.worker",
    "server": "dmi_node.roles.server",
    "replica": "dmi.infer.replica",
    "gateway": "dmi_node.roles.gateway",
}
_REPLICA = "dmi.serve.replica"
"""Of a deployment."""
_KEPT = {
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
}
"""What of the daemon's environment a role process sees."""

Happened = Callable[[RoleEvent], Awaitable[None]]


def kept(source: Mapping[str, str]) -> dict[str, str]:
    """What of an environment role processes see."""
    return {name: value for name, value in source.items() if name in _KEPT or name.startswith("PYTHON")}


def environment(descriptor: int, source: Mapping[str, str]) -> dict[str, str]:
    """A role process's environment: nothing of DMI's own but the channel's number and the umask to go back to."""
    umask = {} if (mask := usual_umask()) is None else {UMASK: f"{mask:o}"}
    return kept(source) | {DESCRIPTOR: str(descriptor), "PYTHONUNBUFFERED": "1"} | umask


class RoleProcess:
    """Start it with ``run``, which returns when the process is gone. Everything it says goes to ``happened``, one thing
    at a time: a process that says more than can be taken in waits."""

    def __init__(self, launch: Launch, happened: Happened, more: Mapping[str, str] | None = None) -> None:
        """``more`` is in its environment, too."""
        own = launch if isinstance(launch, TrainingLaunch) else None
        self._more = dict(more or {}) | dict(() if own is None else own.env)
        self._python = None if own is None else own.python
        self._launch = launch
        self._happened = happened
        self._directory = Path(launch.directory)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._output: asyncio.BaseTransport | None = None
        self._signs = Signs()
        self._is_busy = False
        """We pass on what it said, so it is not to blame for our silence."""
        self._heard = 0
        """How much it has said."""
        self._stalled = False
        self._stop_after_ms: int | None = None

    @property
    def is_wanted(self) -> bool:
        """Nobody has asked for its end."""
        return self._stop_after_ms is None

    @property
    def pid(self) -> int | None:
        """Of its process; None before that was started."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """The whole life of the process; ends with ``Exited``. ``OSError`` when it cannot even be spawned."""
        process, reader, output = await self._spawn()
        tasks = [asyncio.create_task(work) for work in (self._listen(reader), self._log(output), self._watch())]
        for task in tasks:
            task.add_done_callback(self._end_if_unwatched)
        try:
            await self._happened(Started(process.pid))
            self.tell(self._launch)
            if self._stop_after_ms is not None:
                self.stop(self._stop_after_ms)
            code = await process.wait()
            _kill_group(process.pid)  # what it started and left behind, which may hold its output open
            await self._hear_out(*tasks[:2])
            if tasks[2].done():
                tasks[2].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end(process)
        await self._happened(Exited(max(code, 0), max(-code, 0), self._stalled))

    async def _hear_out(self, ear: "asyncio.Task[None]", log: "asyncio.Task[None]") -> None:
        """Its last words. A large part of a checkpoint may take long to be taken in, and more may be said after it; a silent
        channel is not waited for."""
        await asyncio.wait([ear, log], timeout=_READ_OUT_S)
        heard = -1
        while not ear.done() and (self._is_busy or self._heard != heard):
            heard = self._heard
            await asyncio.wait([ear], timeout=_READ_OUT_S)
        if ear.done():
            ear.result()

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamReader]:
        """Start it; gives what it says on its channel, and what it prints."""
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()  # our own, because asyncio's would be waited for when the process is gone
        try:
            output = asyncio.StreamReader()
            self._output, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", 0)
            )
            self._process = process = await asyncio.create_subprocess_exec(
                self._python or sys.executable,
                "-m",
                _REPLICA if isinstance(self._launch, ReplicaLaunch) else _MODULES[self._launch.key.role],
                cwd=self._directory / "work",
                env={**environment(theirs.fileno(), os.environ), **self._more},
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            await self._end(self._process)
            raise
        finally:
            os.close(write_end)
            theirs.close()
        return process, reader, output

    async def _end(self, process: asyncio.subprocess.Process | None) -> None:
        """Nothing of it is left, also when its life was cancelled."""
        if process is not None and process.returncode is None:
            self.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _READ_OUT_S)
        for end in (self._output, self._writer):
            if end is not None:
                end.close()

    def _end_if_unwatched(self, task: "asyncio.Task[None]") -> None:
        """Nobody hears, logs or watches it any more, by a failure of ours: it ends, and its life says why."""
        if not task.cancelled() and task.exception() is not None:
            self.kill()

    def tell(self, message: ToRole | Launch) -> None:
        """Say something to it; nobody hears when it is gone."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(framed(encode_struct(message)))

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
                message: FromRole = decode_struct(await read_framed(reader), FromRole)
                if not isinstance(message, Moving):
                    await self._pass_on(self._judged(message))
                self._signs.gave(clock.now())
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except RemoteProtocolError as error:
            _logger.warning("%s speaks nonsense and is ended: %s", self._launch.key, error)
            self.kill()
        finally:
            if self._writer is not None:
                self._writer.close()  # all that it said is taken in: it may end

    async def _pass_on(self, event: RoleEvent) -> None:
        self._is_busy = True
        self._heard += 1
        try:
            await self._happened(event)
        finally:
            self._is_busy = False

    def _judged(
        self,
        message: Bound
        | Progressed
        | Served
        | Wanted
        | Unusable
        | Ready
        | CaughtUp
        | Unheard
        | Written
        | Published
        | Completed
        | Failed,
    ) -> RoleEvent:
        """What job code says goes to every node, so it is bounded here. Raises ``RemoteProtocolError``."""
        match message:
            case Bound(address, public_key, pid, machine):
                is_ours = self._process is not None and pid == self._process.pid
                is_ours = is_ours and sum(len(part) for pair in machine for part in pair) <= _MACHINE_CHARACTERS
                if not is_ours or not is_address(address) or not is_public_key(public_key):
                    raise RemoteProtocolError("it is bound to what is no address, or as another process")
            case Unusable(version, text, number):
                return Unusable(version[: 2 * limits.NAME_CHARACTERS], text[-limits.TRACEBACK_BYTES // 4 :], number)
            case Failed(kind, text, starting) if (
                len(kind) > limits.NAME_CHARACTERS or len(text) > limits.TRACEBACK_BYTES
            ):
                return Failed(kind[: limits.NAME_CHARACTERS], text[-limits.TRACEBACK_BYTES :], starting)
        return message

    async def _watch(self) -> None:
        """A process that was seen moving and does not move any more is ended. One that computes moves, though a single call
        may keep its threads from saying so."""
        while True:
            await asyncio.sleep(limits.ROLE_BEAT_MS / 1000)
            if self._is_busy or self._process is None:
                continue
            told = self._signs.look(clock.now(), _computed_s(self._process.pid))
            if told is not None:
                await self._pass_on(told)
            elif self._signs.stands_still(clock.now()):
                self._stalled = True
                self.kill()
                return

    async def _log(self, output: asyncio.StreamReader) -> None:
        """All that it prints. It is read to the end even when the disk takes no more, or it would wait."""
        try:
            with contextlib.closing(LogWriter(self._directory)) as log:
                while piece := await output.read(_PIECE):
                    log.write(piece)
        except OSError as error:
            _logger.warning("the log of %s ends early: %s", self._launch.key, error)
        while await output.read(_PIECE):
            continue


def _computed_s(pid: int) -> float:
    """The processor time that a process has used, in seconds."""
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
