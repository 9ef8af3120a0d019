"""The process of this node that has torch in memory and forks those who compute: started when a replica is, and again when it has
ended. The socket is the node's, so who connects meanwhile waits, and is not turned away."""

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping

from dmi_node.home import Home
from dmi_node.tasks import Tasks
from dmi_node.unix_socket import bound

VARIABLE = "DMI_FORK_SERVER"
"""Where a replica finds the socket."""
_SOCKET = "DMI_FORK_SERVER_FD"
_PARENT = "DMI_FORK_SERVER_PARENT"
_BACKLOG = 64
_TRIES = 3
_CONNECT_S = 30.0
"""A replica that was started so short a time ago may not have connected yet."""
_END_S = 5.0
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
        self._wanted_at = 0.0

    def ready(self, environment: Mapping[str, str]) -> dict[str, str]:
        """It is there, or will be in a moment; gives what a replica must have in its environment. Nothing, where the socket
        cannot be made: a replica then starts its own process."""
        try:
            if self._listener is None:
                self._listener = bound(self._path, socket.SOCK_SEQPACKET, 0o600)
                self._listener.listen(_BACKLOG)
        except OSError as error:
            _logger.warning("no fork server: %s", error)
            return {}
        self._wanted_at = asyncio.get_running_loop().time()
        if self._life is None or self._life.done():
            self._life = self._tasks.start(self._live(self._listener, environment), "fork server")
        return {VARIABLE: str(self._path)}

    async def _live(self, listener: socket.socket, environment: Mapping[str, str]) -> None:
        """As long as somebody waits for it, or may be about to. Where it cannot even start those who wait, and whoever comes
        later, are turned away, and start their own."""
        for _ in range(_TRIES):
            try:
                code = await self._run(listener.fileno(), environment)
            except Exception as error:
                _logger.warning("no fork server: %s", error, exc_info=not isinstance(error, OSError))
                break
            if code:
                _logger.warning("the fork server ended with %s; see %s", code, self._log)
            since = asyncio.get_running_loop().time() - self._wanted_at
            if since > _CONNECT_S and not _is_waited_for(listener):
                return
        self._shut()

    def _shut(self) -> None:
        """Nobody can connect, or waits, any more."""
        if self._listener is not None:
            self._path.unlink(missing_ok=True)
            self._listener.close()
            self._listener = None

    async def _run(self, number: int, environment: Mapping[str, str]) -> int:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dmi.infer.fork_server",
                cwd=self._path.parent,
                env={**environment, _SOCKET: str(number), _PARENT: str(os.getpid())},
                pass_fds=(number,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return await self._process.wait()

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def close(self) -> None:
        """No process is left, and none of those that it forked."""
        if self._life is not None:
            self._life.cancel()  # or it would be started again for those who wait
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _END_S)
        self._shut()


def _is_waited_for(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
