"""The clocks of consensus, and what it starts again from."""

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.identity import NodeId
from dmi_protocol.messages.consensus import Entry, Snapshot


class RaftSettings(Struct, frozen=True):
    """Times in milliseconds. A dropped connection is noticed at once, so the election timeout need not be short."""

    heartbeat_ms: int = 500
    learner_heartbeat_ms: int = 1000
    election_ms: int = 1500
    """A follower campaigns after ``election_ms`` to twice as much without its leader; a leader that hears no quorum for
    as long steps down."""
    broken_link_ms: tuple[int, int] = (50, 200)
    """How long a follower waits, at least and at most, once its connection to the leader has broken."""
    entries_per_message: int = 256
    window_entries: int = 1024
    """How many entries may be under way to a follower without being acknowledged."""
    batch_bytes: int = limits.CHUNK_BYTES
    """What the entries of one message may weigh, unless there is only one."""
    probe_bytes: int = 16 * 1024
    """The same towards a follower that may be dead, or whose log may differ: it is repeated with each heartbeat."""

    def check(self) -> None:
        """Assert the relations between the times."""
        assert self.heartbeat_ms * 3 <= self.election_ms
        assert self.learner_heartbeat_ms < self.election_ms
        assert 0 < self.entries_per_message <= self.window_entries
        assert self.probe_bytes <= self.batch_bytes <= limits.CHUNK_BYTES
        assert 0 < self.broken_link_ms[0] < self.broken_link_ms[1] <= self.election_ms


class Restored(Struct, frozen=True):
    """What the disk still knows. A node that never took part has none of it, and waits to be told."""

    term: int = 0
    voted_for: NodeId | None = None
    snapshot: Snapshot | None = None
    entries: tuple[Entry, ...] = ()
