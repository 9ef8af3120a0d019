"""The process that computes, as its replica sees it: forked by the node's fork server, or started anew where there is none."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dmi.infer.line import DESCRIPTOR
from dmi_protocol import limits

FORK_SERVER = "DMI_FORK_SERVER"
"""The environment variable that names the socket of the node's fork server."""
DESCRIPTORS = 3
NUMBER = struct.Struct("<i")
PATH_BYTES = 4_096
_START_S = limits.ROLE_START_MS / 1000


class StartedProcess:
    """``theirs`` is its end of the line; it works in the directory that we work in."""

    def __init__(self, theirs: socket.socket) -> None:
        self._connection = _connected()
        self._process: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self.pid = self._forked(theirs) if self._connection is not None else None
        if self.pid is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dmi.infer.compute"],
                env={**os.environ, DESCRIPTOR: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
            )
            self.pid = self._process.pid

    def _forked(self, theirs: socket.socket) -> int | None:
        """Its id; None when the fork server has gone."""
        assert self._connection is not None
        try:
            directory = os.fsencode(Path.cwd())
            socket.send_fds(self._connection, [directory], [theirs.fileno(), 1, 2])
            self._connection.settimeout(_START_S)
            found = self._connection.recv(NUMBER.size)
        except OSError:
            found = b""
        if len(found) == NUMBER.size:
            pid: int = NUMBER.unpack(found)[0]
            return pid
        self._connection.close()
        self._connection = None
        return None

    def poll(self) -> int | None:
        """How it has ended, as ``Popen.poll``."""
        if self._process is not None:
            return self._process.poll()
        return self._heard(0)

    def wait(self) -> int:
        """The same, once it has."""
        if self._process is not None:
            return self._process.wait()
        code = self._heard(None)
        assert code is not None
        return code

    def _heard(self, within_s: float | None) -> int | None:
        if self._code is None and self._connection is not None:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if not poll.poll(None if within_s is None else within_s * 1000):
                return None
            try:
                found = self._connection.recv(NUMBER.size)
            except OSError:
                found = b""
            self._code = NUMBER.unpack(found)[0] if len(found) == NUMBER.size else -signal.SIGKILL
            self._connection.close()
        return self._code

    def kill(self) -> None:
        """End it, and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        elif self._code is None and self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(
                    socket.SHUT_WR
                )  # the fork server ends it: nobody else knows whose the number is
            self.wait()


def how_ended(code: int) -> str:
    """In words; ``code`` is as ``Popen.poll`` has it."""
    if code >= 0:
        return f"it ended the process that computed it, with code {code}"
    what = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"it ended the process that computed it, by {signal.Signals(-code).name}{what}"


def computed_ticks(pid: int | None) -> int:
    """The processor time that a process has used: fields 14 and 15 of its line in ``/proc``, in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _connected() -> socket.socket | None:
    path = os.environ.get(FORK_SERVER)
    if path is None:
        return None
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            made.connect(f"/proc/self/fd/{directory}/{Path(path).name}")  # paths may be longer than sockets allow
        finally:
            os.close(directory)
    except OSError:
        made.close()
        return None
    return made
