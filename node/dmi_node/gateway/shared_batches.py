"""Memory that a gateway shares with the replicas of its own host: large batches lie there, and are not sent."""

from collections.abc import Sequence

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.messages.serving import Shared
from dmi_protocol.serving.events import ReplicaId
from dmi_protocol.tensor_spec import TensorSpec
from dmi_wire.arena import place
from dmi_wire.bulk import Buffer
from dmi_wire.shared_memory import Segment

LEAST_BYTES = 32 * 1024
"""Less is sent as fast."""
_SEGMENT_BYTES = 1 << 20
_ROOM_BYTES = 1 << 26
"""Outputs that need more are sent."""
_KEPT_BYTES = 1 << 27
"""Larger segments are given back at once."""
_KEPT = limits.REPLICA_BATCHES + 1
"""Segments of a replica that wait for a batch."""


class SharedBatches:
    """A segment belongs to a batch from ``put`` until the replica has answered (``done``). Of a replica that is gone nothing is
    used again (``forget``): its process may still write there."""

    def __init__(self) -> None:
        self._free: dict[ReplicaId, list[Segment]] = {}
        self._used: dict[tuple[ReplicaId, int], tuple[Segment, int]] = {}
        self._row_bytes: dict[ReplicaId, int] = {}
        """Of the outputs, as the last batch had them."""

    def put(
        self, replica: ReplicaId, batch: int, specs: Sequence[TensorSpec], parts: Sequence[Sequence[Buffer]], rows: int
    ) -> Shared | None:
        """The inputs, each made of ``parts``, one after the other; None where they are few bytes, or this host has no memory for
        them."""
        offsets, end = place(specs)
        if end < LEAST_BYTES:
            return None
        room = rows * self._row_bytes.get(replica, 0)
        try:
            segment = self._segment(replica, end + (room if room <= _ROOM_BYTES else 0))
        except OSError:
            return None
        for offset, pieces in zip(offsets, parts, strict=True):
            for piece in pieces:
                data = memoryview(piece).cast("B")
                segment.buffer[offset : offset + data.nbytes] = data
                offset += data.nbytes
        self._used[replica, batch] = segment, end
        return Shared(segment.name, segment.size, end)

    def _segment(self, replica: ReplicaId, size: int) -> Segment:
        free = self._free.setdefault(replica, [])
        for segment in free:
            if segment.size >= size:
                free.remove(segment)
                return segment
        if free:  # which all are too small
            free.pop(0).withdraw()
        return Segment.create(max(_SEGMENT_BYTES, 1 << (size - 1).bit_length()))

    def outputs(self, replica: ReplicaId, batch: int, specs: Sequence[TensorSpec]) -> tuple[memoryview, ...]:
        """What the replica has written, our own from now on. Raises ``RemoteProtocolError`` for what was not shared."""
        if (replica, batch) not in self._used:
            raise RemoteProtocolError("outputs in memory that was not shared")
        segment, end = self._used[replica, batch]
        return tuple(
            memoryview(bytes(segment.view(end + offset, spec.length_bytes)))
            for offset, spec in zip(place(specs)[0], specs, strict=True)
        )

    def learn(self, replica: ReplicaId, specs: Sequence[TensorSpec], rows: int) -> None:
        """So large are the outputs of so many rows: the next batches have room for theirs."""
        if rows:
            self._row_bytes[replica] = -(-place(specs)[1] // rows)

    def done(self, replica: ReplicaId, batch: int) -> None:
        """The replica has answered."""
        segment, _ = self._used.pop((replica, batch), (None, 0))
        if segment is not None:
            free = self._free.setdefault(replica, [])
            free.append(segment)
            free.sort(key=lambda each: each.size)
            while free and (len(free) > _KEPT or free[-1].size > _KEPT_BYTES):
                free.pop(0 if len(free) > _KEPT else -1).withdraw()

    def forget(self, replica: ReplicaId) -> None:
        """Its connection is closed, or broke."""
        for segment in self._free.pop(replica, []):
            segment.withdraw()
        for key in [key for key in self._used if key[0] == replica]:
            self._used.pop(key)[0].withdraw()
        self._row_bytes.pop(replica, None)
