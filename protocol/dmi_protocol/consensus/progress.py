"""How far one follower is, as the leader knows it: probed until its log is known to match, then streamed to."""

from dmi_protocol.instant import Instant, after


class Progress:
    """One follower. ``next_index`` is the first entry that was not sent to it yet."""

    def __init__(self, now: Instant, next_index: int) -> None:
        self.matched = 0
        self.next_index = next_index
        self.is_streaming = False
        """Its log is known to match: entries may follow before the last ones are acknowledged."""
        self.heard_at = now
        self.beat_ms = 0
        """It gets a heartbeat when it was told nothing for so long."""
        self.beat_due = now
        self.told = 0
        """What it was told to be committed."""
        self.piece_at: int | None = None
        """The offset of the piece of our snapshot that is under way."""
        self.piece_due = now
        """When that piece may be taken for lost."""

    def beats_every(self, milliseconds: int) -> None:
        """From now on: a learner is not in a hurry."""
        self.beat_due = after(self.beat_due, milliseconds - self.beat_ms)
        self.beat_ms = milliseconds

    def confirm(self, index: int) -> None:
        """Its log equals ours up to ``index``."""
        self.matched = max(self.matched, index)
        self.next_index = max(self.next_index if self.is_streaming else 0, self.matched + 1)
        self.is_streaming, self.piece_at = True, None

    def back_off(self, index: int) -> bool:
        """Its log differs from ours: try again from ``index``. False when the answer is older than what we know."""
        if not self.matched < index < self.next_index:
            return False
        self.is_streaming, self.next_index, self.piece_at = False, index, None
        return True

    def doubt(self) -> None:
        """A heartbeat is due: what was sent and not acknowledged by now may be lost, so send no more on trust."""
        self.is_streaming = self.is_streaming and self.matched + 1 >= self.next_index

    def wants_piece(self, now: Instant, offset: int) -> bool:
        """It has ``offset`` bytes of our snapshot: should the next ones leave, or are they under way already? That they are is
        believed as long as a heartbeat takes: whoever is told of commits again and again gets none."""
        if self.piece_at == offset and now < self.piece_due:
            return False
        self.piece_at, self.piece_due = offset, after(now, self.beat_ms)
        return True
