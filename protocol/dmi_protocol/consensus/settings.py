"""The clocks of consensus, and what it starts again from."""

from msgspec import Struct

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

    def check(self) -> None:
        """Assert the relations between the times."""
        assert self.heartbeat_ms * 3 <= self.election_ms
        assert self.learner_heartbeat_ms < self.election_ms
        assert 0 < self.broken_link_ms[0] < self.broken_link_ms[1] <= self.election_ms


class Restored(Struct, frozen=True):
    """What the disk still knows. A node that never took part has none of it, and waits to be told."""

    term: int = 0
    voted_for: NodeId | None = None
    snapshot: Snapshot | None = None
    entries: tuple[Entry, ...] = ()
