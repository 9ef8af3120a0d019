"""What can be done to processes, disks and clocks. What can be done to a network is in ``hosts.py``."""

import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from dmi.connection import Connection
from dmi.errors import DmiError
from dmi.mesh import Mesh
from tests.mesh.local import LocalMesh

_SHIM = Path(__file__).parent / "clock.c"
Roles = Sequence[dict[str, Any]]


def last(seconds: float) -> None:
    """For a fault that is one because it lasts: a partition of ten seconds, a pause of five."""
    threading.Event().wait(seconds)


def roles(node: Mesh, job: str, role: str) -> Roles:
    """The processes of one role of a job, as ``roles --json`` has them; backups are not servers here."""
    found = [each for each in node.roles() if each["job"] == job and each["role"] == role]
    return [each for each in found if role != "server" or any(shard["primary"] for shard in each["shards"])]


def place(mesh: LocalMesh, name: str) -> int:
    """The number of the node of a name."""
    return next(index for index in range(mesh.size) if mesh.node(index).name == name)


def kill(pid: int) -> bool:
    """End a process as a crash would; false when it has gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def pause(pid: int, seconds: float) -> bool:
    """SIGSTOP, and SIGCONT after ``seconds``; false when somebody ended the process meanwhile."""
    process = psutil.Process(pid)  # knows whether the number has gone to another process since
    process.suspend()
    last(seconds)
    try:
        process.resume()
    except psutil.NoSuchProcess:
        return False
    return True


def is_up(mesh: LocalMesh, index: int) -> bool:
    """Whether a node's daemon runs. One that ended and was not waited for does not."""
    try:
        return bool(psutil.Process(mesh.pid(index)).status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, OSError, IndexError, ValueError):
        return False


def is_answering(mesh: LocalMesh, index: int) -> bool:
    """Whether a node answers, and has a quorum."""
    try:
        return bool(Mesh(Connection(mesh.node(index))).status()["quorum"])
    except DmiError:
        return False


class Disk:
    """A small disk that can be filled. Give ``Hosts`` its size; the ballast is one file among the node's."""

    def __init__(self, home: Path) -> None:
        assert home.is_mount(), f"{home} is on a disk that others need"
        self._ballast = home / "ballast"

    def fill(self) -> int:
        """Take all that is left; gives the bytes that were."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(64 * 1024))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            return file.tell()

    def empty(self) -> None:
        """Give it back."""
        self._ballast.unlink()


class Clock:
    """A wall clock that jumps, for daemons that are started with ``environment``. Nobody else's clock is touched.

    Time namespaces shift only the clocks that nobody sets, so this is a small library that is loaded before libc; it
    needs a C compiler. Role processes get no environment of that kind, and keep the machine's time.
    """

    WHY_NOT = None if shutil.which("cc") else "a clock that jumps needs a C compiler"

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset_s"
        library = directory / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, _SHIM, "-ldl"], check=True, timeout=60)
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(self._offset)}
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """From now on the clock is ``seconds`` away from the machine's."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds}\n")
        new.replace(self._offset)
