"""Loader processes: they read and decode the next batches while one is computed."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Container, Generator
from pathlib import Path
from typing import NoReturn

from dmi.errors import UsageError
from dmi.infer import carried
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Pack
from dmi.infer.line import DESCRIPTOR, GoneError, Line
from dmi.infer.load import DISK, HEAD, INPUTS, UNREACHABLE
from dmi.infer.place import UnreachableError

_LOOK_S = 1.0
SILENT_S = 600.0
"""A disk or a network that has given nothing for so long is not waited for; another host may have a better one."""
_MOST = 4


def loaders_of(config: Config) -> int:
    """How many a replica has on this host: the processors that computing leaves, at most four; and one for a table, which is read
    in order."""
    if config.loaders is not None:
        wanted = config.loaders
    else:
        spare = (len(os.sched_getaffinity(0)) - config.threads * config.replicas_per_node) // config.replicas_per_node
        wanted = max(0, min(_MOST, spare))
    return wanted if config.input.kind == "images" else min(1, wanted)


class Loaders:
    """``count`` of them, started when they are first needed; they find the configuration and the listing in the directory that
    they are started in. This process shares their fate: an input that ends one of them, or stops it, does the same to us, and is
    found as any other that ends who computes it."""

    def __init__(self, batch_size: int, count: int) -> None:
        self._batch_size = batch_size
        self._count = count
        self._loaders: list[tuple[subprocess.Popen[bytes], socket.socket]] = []

    def read(
        self, start: int, stop: int, skip: Container[int] = (), pack: Pack | None = None
    ) -> Generator[Given, None, None]:
        """As ``readers.read``: inputs ``start`` to ``stop``, in order. Raises what reading raises."""
        size = self._batch_size
        batches = [[first, min(first + size, stop)] for first in range(start, stop, size)]
        if not self._loaders:
            self._loaders = [self._start() for _ in range(self._count)]
        skipped = [place for place in range(start, stop) if place in skip]
        for place, (process, channel) in enumerate(self._loaders):
            try:
                Line(channel).say(batches=batches[place :: self._count], skip=skipped, pack=pack)
            except GoneError:
                _end_as(process.wait())
        is_over = False
        try:
            for number in range(len(batches)):
                found = self._take(*self._loaders[number % self._count])
                is_over = number == len(batches) - 1
                yield from found
        finally:
            if not is_over:  # what they have read ahead is not what is wanted next
                self.close()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "dmi.infer.load"],
                env={**os.environ, DESCRIPTOR: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
            )
        return process, ours

    def _take(self, process: "subprocess.Popen[bytes]", channel: socket.socket) -> list[Given]:
        kind, length = HEAD.unpack(self._exactly(process, channel, HEAD.size))
        data = self._exactly(process, channel, length)
        if kind == INPUTS:
            return carried.unpacked(data)
        raise {UNREACHABLE: UnreachableError, DISK: OSError}.get(kind, UsageError)(data.decode())

    def _exactly(self, process: "subprocess.Popen[bytes]", channel: socket.socket, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while view:
            silent_since = time.monotonic()
            while not poll.poll(_LOOK_S * 1000):
                if _is_stopped(process.pid):
                    process.kill()
                    os.kill(os.getpid(), signal.SIGSTOP)
                if time.monotonic() - silent_since > SILENT_S:
                    raise UnreachableError(f"the inputs cannot be read: nothing has come for {SILENT_S:g} s")
            try:
                count = channel.recv_into(view)
            except OSError:
                count = 0
            if not count:
                _end_as(process.wait())
            view = view[count:]
        return data

    def close(self) -> None:
        """No process is left."""
        for process, channel in self._loaders:
            channel.close()
            process.kill()
            process.wait()
        self._loaders = []


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _end_as(code: int) -> NoReturn:
    """The way that a child has ended."""
    if code < 0:
        if -code not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code) or 1)
