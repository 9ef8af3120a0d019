"""Memory in which batches lie between two processes of one host: a gateway and a replica, or a replica and who computes for
it."""

from collections.abc import Sequence

from dmi_protocol import limits
from dmi_protocol.tensor_spec import TensorSpec
from dmi_wire.shared_memory import Segment

_LEAST_BYTES = 1 << 20
_MAPPED_BYTES = 1 << 28
"""What is mapped beyond that is opened again, where it is needed again."""


def place(specs: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Where each tensor begins, and how many bytes they take together."""
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        end += -(-spec.length_bytes // limits.ALIGNMENT_BYTES) * limits.ALIGNMENT_BYTES
    return offsets, end


class Arena:
    """The writing end: one segment that grows, which its other end opens by the name that goes with each message."""

    def __init__(self) -> None:
        self._segment: Segment | None = None

    def room(self, size: int) -> tuple[str, int, memoryview]:
        """At least ``size`` bytes: the name and the size of the segment, and its bytes. Raises ``OSError`` where this host has no
        such memory to spare."""
        if self._segment is None or self._segment.size < size:
            self.close()
            self._segment = Segment.create(max(_LEAST_BYTES, 1 << max(size - 1, 0).bit_length()))
        return self._segment.name, self._segment.size, self._segment.buffer

    def close(self) -> None:
        """The memory goes when the other end has closed it, too."""
        if self._segment is not None:
            self._segment.withdraw()
            self._segment = None


class Arenas:
    """As many as batches may be in hand, in turn: what was written for one stays until that many others were."""

    def __init__(self) -> None:
        self._arenas = [Arena() for _ in range(limits.COMPUTING_BATCHES)]
        self._turn = 0

    def next(self) -> Arena:
        """That of the next batch."""
        self._turn = (self._turn + 1) % len(self._arenas)
        return self._arenas[self._turn]

    def close(self) -> None:
        """All of them."""
        for arena in self._arenas:
            arena.close()


class Reader:
    """The reading end: what was opened once is not opened again, until many others were."""

    def __init__(self, most: int = 2 * limits.COMPUTING_BATCHES) -> None:
        self._most = most
        self._open: dict[str, Segment] = {}

    def view(self, name: str, size: int, offset: int, length: int) -> memoryview:
        """These bytes of a segment. Raises ``OSError`` where it is gone, and ``RemoteProtocolError``."""
        found = self._open.pop(name, None)
        if found is None or found.size != size:
            found = Segment.attach(name, size)
        self._open[name] = found
        while len(self._open) > 1 and (len(self._open) > self._most or self._mapped() > _MAPPED_BYTES):
            del self._open[next(iter(self._open))]
        return found.view(offset, length)

    def _mapped(self) -> int:
        return sum(segment.size for segment in self._open.values())
