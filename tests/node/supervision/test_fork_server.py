"""The process that forks those who compute: there when it is wanted, again when it has ended, and gone with the node."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dmi_node.home import Home
from dmi_node.supervision.fork_server import VARIABLE, ForkServer
from dmi_node.supervision.process import kept
from dmi_node.tasks import Tasks
from tests.mesh.local import until

pytestmark = pytest.mark.processes
SECONDS = 60


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ForkServer]:
    home, tasks = Home(tmp_path / "n0"), Tasks()
    home.make()
    made = ForkServer(home, tasks)
    yield made
    await made.close()
    await tasks.close()


def connected(found: dict[str, str]) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.settimeout(SECONDS)
    made.connect(found[VARIABLE])
    return made


def asked(found: dict[str, str], directory: Path) -> tuple[socket.socket, socket.socket]:
    """A process that computes is wanted: the connection, and our end of its line."""
    ours, theirs = socket.socketpair()
    connection = connected(found)
    with theirs, Path(os.devnull).open("w") as nothing:
        socket.send_fds(connection, [os.fsencode(directory)], [theirs.fileno(), nothing.fileno(), nothing.fileno()])
    return connection, ours


def is_gone(pid: int) -> bool:
    """Within a minute."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(end, select.POLLIN)
    gone = bool(poll.poll(SECONDS * 1000))
    os.close(end)
    return gone


async def test_it_forks_and_what_it_forked_ends_with_it(server: ForkServer, tmp_path: Path) -> None:
    found = server.ready(kept(os.environ))
    connection, line = asked(found, tmp_path)
    with connection, line:
        pid = int.from_bytes(await asyncio.to_thread(connection.recv, 4), "little")
        assert os.path.exists(f"/proc/{pid}")
        assert server.ready(kept(os.environ)) == found, "there is one already"
        await server.close()
        assert await asyncio.to_thread(is_gone, pid)


@pytest.mark.deep
async def test_one_that_was_killed_is_started_again_for_those_who_wait(server: ForkServer, tmp_path: Path) -> None:
    found = server.ready(kept(os.environ))
    process = await asyncio.to_thread(until, lambda: server._process, SECONDS, "it is started")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    connection, line = asked(found, tmp_path)
    with connection, line:
        assert len(await asyncio.to_thread(connection.recv, 4)) == 4


@pytest.mark.deep
async def test_where_it_cannot_start_those_who_wait_are_turned_away(server: ForkServer, tmp_path: Path) -> None:
    found = server.ready({"PYTHONHOME": str(tmp_path / "nothing")})
    connection, line = asked(found, tmp_path)
    with connection, line, contextlib.suppress(ConnectionResetError):  # it may be told so before what we said was read
        assert await asyncio.to_thread(connection.recv, 4) == b""


def test_one_whose_node_died_while_it_started_ends(tmp_path: Path) -> None:
    """The kernel tells of a parent's death only who has asked it to before."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "fork.sock"))
        listener.listen()
        numbers = {"DMI_FORK_SERVER_FD": str(listener.fileno()), "DMI_FORK_SERVER_PARENT": str(os.getppid())}
        done = subprocess.run(
            [sys.executable, "-m", "dmi.infer.fork_server"],
            env={**os.environ, **numbers},
            pass_fds=[listener.fileno()],
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 0
