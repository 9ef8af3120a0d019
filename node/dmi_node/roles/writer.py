"""Writes parts of checkpoints beside the server's loop, so that no step waits for a disk."""

import errno
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from dmi_protocol.identity import BlobHash
from dmi_tensor.checkpoint import Part, write_part

_AT_ONCE = 2
"""Parts in memory: one that is being written, and one that waits."""
_DISK_S = 60.0


class Written(Struct, frozen=True):
    """A part is durable at ``path``."""

    step: int
    shard: int
    final: bool
    path: Path
    size_bytes: int
    blob: BlobHash


class Writer:
    """Parts are written in order. ``fd`` can be read when ``done`` has something to give."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._parts: deque[Future[Written]] = deque()
        self._got_on_at = time.monotonic()
        """When the last part was written, or there were as many as there may be."""

    @property
    def is_full(self) -> bool:
        """Are as many parts in memory as there may be? Raises ``OSError`` when they have been for long: a large part may take
        its time, as long as nobody waits for it."""
        is_full = self._waiting() >= _AT_ONCE
        if is_full and time.monotonic() - self._got_on_at > _DISK_S:
            raise OSError(errno.EIO, f"the disk has written no part of a checkpoint for {_DISK_S:g} s")
        return is_full

    def _waiting(self) -> int:
        return sum(not each.done() for each in self._parts)

    def write(self, path: Path, part: Part, shard: int, *, final: bool) -> None:
        """Begin to write ``part`` of ``shard``, whose tensors nobody changes any more. Not while ``is_full``."""
        assert not self.is_full
        future = self._thread.submit(_write, path, part, shard, final)
        self._parts.append(future)
        if self._waiting() >= _AT_ONCE:
            self._got_on_at = time.monotonic()  # from now on somebody may wait
        future.add_done_callback(lambda _: os.eventfd_write(self.fd, 1))

    def done(self) -> Iterator[Written]:
        """What is durable since the last call, in order. Raises ``OSError`` when the disk could not."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        while self._parts and self._parts[0].done():
            self._got_on_at = time.monotonic()
            yield self._parts.popleft().result()

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()
        os.close(self.fd)


def _write(path: Path, part: Part, shard: int, final: bool) -> Written:
    size = write_part(path, part)
    with path.open("rb") as file:
        blob = BlobHash(hashlib.file_digest(file, "sha256").hexdigest())
    return Written(part.header.step, shard, final, path, size, blob)
