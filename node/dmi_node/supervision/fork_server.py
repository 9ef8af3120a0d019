"""The process of this node that has torch in memory and forks those who compute: started when a replica is, and again when it has
ended. The socket is the node's, so who connects meanwhile waits, and is not turned away."""

import asyncio
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from dmi_node.home import Home
from dmi_node.tasks import Tasks

VARIABLE = "DMI_FORK_SERVER"
"""Where a replica finds the socket."""
_SOCKET = "DMI_FORK_SERVER_FD"
_BACKLOG = 64
_TRIES = 3
_logger = logging.getLogger("dmi.roles")


class ForkServer:
    """One for each node."""

    def __init__(self, home: Home, tasks: Tasks) -> None:
        self._path = home.root / "fork.sock"
        self._log = home.root / "fork-server.log"
        self._tasks = tasks
        self._listener: socket.socket | None = None
        self._life: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    def ready(self, environment: Mapping[str, str]) -> dict[str, str]:
        """It is there, or will be in a moment; gives what a replica must have in its environment. Nothing, where the socket
        cannot be made: a replica then starts its own process."""
        try:
            if self._listener is None:
                self._listener = _bind(self._path)
        except OSError as error:
            _logger.warning("no fork server: %s", error)
            return {}
        if self._life is None or self._life.done():
            self._life = self._tasks.start(self._live(self._listener, environment), "fork server")
        return {VARIABLE: str(self._path)}

    async def _live(self, listener: socket.socket, environment: Mapping[str, str]) -> None:
        """As long as somebody waits for it. Where it cannot even start those who wait are turned away, and start their own."""
        for _ in range(_TRIES):
            try:
                code = await self._run(listener.fileno(), environment)
            except OSError as error:
                _logger.warning("no fork server: %s", error)
                break
            if code:
                _logger.warning("the fork server ended with %s; see %s", code, self._log)
            if not _is_waited_for(listener):
                return
        while _is_waited_for(listener):
            listener.accept()[0].close()

    async def _run(self, number: int, environment: Mapping[str, str]) -> int:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dmi.infer.fork_server",
                cwd=self._path.parent,
                env={**environment, _SOCKET: str(number)},
                pass_fds=(number,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return await self._process.wait()

    async def close(self) -> None:
        """No process is left, and none of those that it forked."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)


def _is_waited_for(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        door.bind(f"/proc/self/fd/{directory}/{path.name}")  # paths may be longer than the 108 bytes that sockets allow
        path.chmod(0o600)
        door.listen(_BACKLOG)
    except OSError:
        door.close()
        raise
    finally:
        os.close(directory)
    return door
