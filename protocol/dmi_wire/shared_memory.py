"""Memory that two role processes of one node have both mapped: tensors lie there, and only descriptors are sent.

A segment is a file in ``/dev/shm`` with a random name and mode 0600. Its maker removes the name as soon as the other
end has opened it, so that nothing is left behind however the processes end.
"""

import mmap
import os
import re
import secrets
import stat
from pathlib import Path

from dmi_protocol.errors import RemoteProtocolError

DIRECTORY = Path("/dev/shm")  # noqa: S108 (the names are random, and files are made with O_EXCL)
_NAME = re.compile(r"dmi-[0-9a-f]{32}")


class Segment:
    """``size`` bytes of shared memory. ``buffer`` stays valid for as long as anything refers to it."""

    def __init__(self, name: str, size: int, descriptor: int) -> None:
        self.name = name
        self.size = size
        try:
            self.buffer = memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE))
        finally:
            os.close(descriptor)

    @classmethod
    def create(cls, size: int) -> "Segment":
        """Make a segment; ``OSError`` when ``/dev/shm`` is missing or has no ``size`` bytes to spare."""
        name = f"dmi-{secrets.token_hex(16)}"
        path = DIRECTORY / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            path.unlink()
            os.close(descriptor)
            raise
        return cls(name, size, descriptor)

    @classmethod
    def attach(cls, name: str, size: int) -> "Segment":
        """Open a segment that a peer has named.

        Raises ``RemoteProtocolError`` when the name is not one that ``create`` gives, or the file is not ours alone
        or not of ``size`` bytes; ``OSError`` when it is not there.
        """
        if _NAME.fullmatch(name) is None or size <= 0:
            raise RemoteProtocolError("a peer offers shared memory under a name that is no segment's")
        descriptor = os.open(DIRECTORY / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        found = os.fstat(descriptor)
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not is_ours or found.st_size != size:
            os.close(descriptor)
            raise RemoteProtocolError("a peer offers shared memory of another owner or size")
        return cls(name, size, descriptor)

    def remove_name(self) -> None:
        """Both ends have it mapped: free the memory once both are gone. Doing this twice is fine."""
        (DIRECTORY / self.name).unlink(missing_ok=True)

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes at ``offset``; ``RemoteProtocolError`` when they are not inside the segment."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise RemoteProtocolError(f"bytes {offset}+{length} lie outside a segment of {self.size}")
        return self.buffer[offset : offset + length]
