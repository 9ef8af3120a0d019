"""The clocks of membership, in milliseconds."""

from msgspec import Struct


class SwimSettings(Struct, frozen=True):
    """Dropped connections carry fast detection, so the probes themselves can be rare."""

    period_ms: int = 500
    """A probe each period; longer by as many periods as our own health is bad (Lifeguard, local health multiplier)."""
    ping_ms: int = 200
    """How long an ack may take before others are asked to try."""
    suspicion_min_ms: int = 1000
    suspicion_max_ms: int = 4000
    """A suspect is dead after the maximum, or sooner as others confirm, never before the minimum."""
    cut_ping_ms: int = 200
    cut_suspicion_ms: int = 400
    """The same for a member whose connection has broken and does not come back: a host that is slow keeps its connections."""
    indirect: int = 3
    """How many others are asked to try; also how many confirmations bring a suspicion to its minimum.

    About four times as many look for themselves as soon as they hear of a suspicion.
    """
    health_max: int = 8
    probes_max: int = 64
    """Probes under way at once, those for others included; whoever asks for more is not answered."""
    retransmit: int = 4
    """News rides on this many messages times log2 of the mesh's size."""
    updates_per_message: int = 8
    rumors_per_message: int = 4
    rumor_ms: int = 250
    """Rumors do not wait for probes, but are sent at most so often."""

    def check(self) -> None:
        """Assert the relations between the times."""
        assert self.ping_ms * 2 < self.period_ms
        assert self.cut_ping_ms <= self.ping_ms
        assert 0 < self.cut_suspicion_ms <= self.suspicion_min_ms
        assert 0 < self.suspicion_min_ms <= self.suspicion_max_ms
