"""What a daemon makes of the signs that a role process gives, and of the processor time that it uses."""

from dmi_protocol import limits
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import Busy


class Signs:
    """One process either moves, or is busy (it gives no sign, and computes: a single call may hold the interpreter's lock), or
    stands still. Nothing is made of it before its first sign."""

    def __init__(self) -> None:
        self._moved_at: Instant | None = None
        """When it gave a sign, or was seen to have computed."""
        self._signed_at = self._resumed_at = Instant(0)
        """The last sign, and the first one after the last while without: when that lasts, it is later."""
        self._computed_s = 0.0
        self._whiles = 0
        """How often it gave no sign for a while, though it computed."""
        self._is_told_over = True
        """Was it told that the last such while is over?"""

    def gave(self, now: Instant) -> None:
        """It said something, if only that it moves."""
        if now - self._signed_at > limits.ROLE_BUSY_MS:
            self._resumed_at = now
        self._moved_at = self._signed_at = now

    def look(self, now: Instant, computed_s: float) -> Busy | None:
        """It has used so much processor time by now, in seconds; gives what the others must learn. That it is over is told a
        while after it is: those who wait for the process have heard it again by then."""
        if self._moved_at is None:
            return None
        computes, self._computed_s = computed_s > self._computed_s, computed_s
        if computes:
            self._moved_at = now
        if self._is_told_over and computes and now - self._signed_at > limits.ROLE_BUSY_MS:
            self._is_told_over = False
            self._resumed_at = now
            self._whiles += 1
            return Busy(self._whiles, is_over=False)
        if not self._is_told_over and self._signed_at - self._resumed_at > limits.ROLE_BUSY_MS:
            self._is_told_over = True
            return Busy(self._whiles, is_over=True)
        return None

    def stands_still(self, now: Instant) -> bool:
        """It was seen moving, and has not moved for so long that it is to be ended."""
        return self._moved_at is not None and now - self._moved_at > limits.ROLE_STALLED_MS
