"""Memory that two role processes of one node have both mapped: tensors lie there, and only descriptors are sent.

A segment is an anonymous file of its maker. The other end opens it through the maker's ``/proc/PID/fd``, which the
kernel allows to processes of the same user only. There is no name to clean up: the memory is gone when both are.
"""

import errno
import fcntl
import mmap
import os
import re
from pathlib import Path

from dmi_protocol.errors import RemoteProtocolError
from dmi_wire.host_memory import available_bytes

_NAME = re.compile(r"([1-9][0-9]{0,8})-([0-9]{1,6})-([0-9]{1,20})")
"""The maker's process, its descriptor, and the number of the file: descriptors are given again to other files."""
_LABEL = "dmi-exchange"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""The size is fixed for ever: whoever could shrink the file would end the other process with SIGBUS."""


class Segment:
    """``size`` bytes of shared memory. ``buffer`` stays valid for as long as anything refers to it.

    ``name`` is what the other end attaches by, until ``withdraw``.
    """

    def __init__(self, name: str, size: int, descriptor: int) -> None:
        self.name = name
        self.size = size
        self._descriptor: int | None = descriptor
        self.buffer = memoryview(mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE))

    @classmethod
    def create(cls, size: int) -> "Segment":
        """Make a segment; ``OSError`` when this host has no ``size`` bytes to spare, or no anonymous files.

        The kernel would rather kill somebody than say that memory has run out, so we look first.
        """
        if size > (available_bytes() or 0) // 2:
            raise OSError(errno.ENOMEM, f"no {size} bytes of shared memory to spare")
        descriptor = os.memfd_create(_LABEL, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(descriptor, 0, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return cls(f"{os.getpid()}-{descriptor}-{os.fstat(descriptor).st_ino}", size, descriptor)
        except OSError:
            os.close(descriptor)
            raise

    @classmethod
    def attach(cls, name: str, size: int) -> "Segment":
        """Open a segment that a peer has named.

        Raises ``RemoteProtocolError`` when the name is not one that ``create`` gives, or what it names is no sealed
        segment of ``size`` bytes; ``OSError`` when it is not there any more.
        """
        match = _NAME.fullmatch(name)
        if match is None or size <= 0:
            raise RemoteProtocolError("a peer offers shared memory under a name that is no segment's")
        path = Path(f"/proc/{match[1]}/fd/{match[2]}")
        if not str(path.readlink()).startswith(f"/memfd:{_LABEL}"):
            raise RemoteProtocolError("a peer offers shared memory that is no segment")
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if str(os.fstat(descriptor).st_ino) != match[3]:
                raise FileNotFoundError(errno.ENOENT, "another segment has its place", name)
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) != _SEALS or os.fstat(descriptor).st_size != size:
                raise RemoteProtocolError("a peer offers shared memory of another size")
            return cls(name, size, descriptor)
        finally:
            os.close(descriptor)

    def withdraw(self) -> None:
        """The other end has it mapped, and nobody else shall. Only the maker calls this; twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes at ``offset``; ``RemoteProtocolError`` when they are not inside the segment."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise RemoteProtocolError(f"bytes {offset}+{length} lie outside a segment of {self.size}")
        return self.buffer[offset : offset + length]
