"""``python -m dmi.infer.fork_server``: one process of a node that has torch in memory, and forks those who compute. A replica
that starts, or has its computing process started again, waits for no import.

The node has bound the socket, whose number is in the environment. A replica connects, and sends the directory to compute in with
three descriptors: its line, standard output and standard error. It is answered the process's id, and the exit code once it has
ended (as ``Popen.returncode``). When the replica closes the connection the process is killed.
"""

import ctypes
import gc
import importlib
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from typing import NoReturn

import torch

from dmi.infer import compute
from dmi.infer.line import Line
from dmi.infer.started import DESCRIPTORS, NUMBER, PATH_BYTES

SOCKET = "DMI_FORK_SERVER_FD"
PARENT = "DMI_FORK_SERVER_PARENT"
"""The id of the node's process."""
_SET_PARENT_DEATH_SIGNAL = 1
_CREDENTIALS = struct.Struct("iII")
_ASK_S = 5.0
"""Who connects says at once what it wants."""
IDLE_S = 600.0
"""Without anybody who computes it ends: the next job of the node starts it again."""


class _Child:
    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        self.end = os.pidfd_open(pid)


class ForkServer:
    """Nothing here starts a thread, and no tensor is computed: both would be lost, or broken, in a fork."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._children: set[_Child] = set()

    def run(self) -> None:
        """Until nobody has wanted anything for long."""
        idle_since = time.monotonic()
        while self._children or time.monotonic() - idle_since < IDLE_S:
            for key, _ in self._selector.select(IDLE_S):
                idle_since = time.monotonic()
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._children:
                    self._ended(key.data, is_gone=key.fileobj is key.data.connection)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_ASK_S)
        try:
            directory, descriptors, _, _ = socket.recv_fds(connection, PATH_BYTES, DESCRIPTORS)
        except OSError:
            connection.close()
            return
        if len(descriptors) == DESCRIPTORS and directory:
            pid = os.fork()
            if not pid:
                self._become(directory, descriptors, connection)
            child = _Child(pid, connection)
            self._children.add(child)
            self._selector.register(child.end, selectors.EVENT_READ, child)
            self._selector.register(connection, selectors.EVENT_READ, child)
            with suppress(OSError):
                connection.send(NUMBER.pack(pid))
        else:
            connection.close()
        for descriptor in descriptors:
            os.close(descriptor)

    def _ended(self, child: _Child, *, is_gone: bool) -> None:
        """It has ended, or the one who wanted it has."""
        if is_gone:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        status = os.waitpid(child.pid, 0)[1]
        self._children.discard(child)
        self._selector.unregister(child.end)
        self._selector.unregister(child.connection)
        os.close(child.end)
        with suppress(OSError):
            child.connection.send(NUMBER.pack(os.waitstatus_to_exitcode(status)))
        child.connection.close()

    def _become(self, directory: bytes, descriptors: list[int], connection: socket.socket) -> NoReturn:
        """The process that computes."""
        code = 1
        try:
            parent = os.getppid()
            os.setsid()
            _be_as(connection)
            ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            self._listener.close()
            self._selector.close()
            connection.close()
            for other in self._children:
                other.connection.close()
                os.close(other.end)
            line, output, errors = descriptors
            os.dup2(output, 1)
            os.dup2(errors, 2)
            os.close(output)
            os.close(errors)
            os.chdir(directory)
            sys.path[0] = os.fsdecode(directory)
            importlib.invalidate_caches()
            compute.live(Line(socket.socket(fileno=line)))
            code = 0
        except BaseException:  # noqa: BLE001 (nothing may return into the server's loop)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _be_as(connection: socket.socket) -> None:
    """Run where the process may run that has connected, and give way as it does."""
    asking = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(asking))
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, asking))


def main() -> None:
    """The process."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(os.environ.pop(PARENT)):
        return  # the node has died while we imported torch, and the kernel was not asked to say so yet
    listener = socket.socket(fileno=int(os.environ.pop(SOCKET)))
    torch.set_num_threads(1)
    compute.be_deterministic()  # which takes a second of imports
    gc.freeze()  # what is shared stays shared
    ForkServer(listener).run()


if __name__ == "__main__":
    main()
