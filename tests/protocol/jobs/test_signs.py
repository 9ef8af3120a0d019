"""A process moves, is busy, or stands still."""

from dmi_protocol import limits
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.signs import Signs
from dmi_protocol.messages.roles import Busy


class Watched:
    """A process that is looked at after every beat."""

    def __init__(self) -> None:
        self.signs = Signs()
        self.now = Instant(1_000_000)
        self.computed_s = 0.0
        self.told: list[Busy] = []

    def live(self, for_ms: int, *, signs: bool, computes: bool) -> bool:
        """Gives whether it stands still then."""
        for _ in range(for_ms // limits.ROLE_BEAT_MS):
            self.now = Instant(self.now + limits.ROLE_BEAT_MS)
            self.computed_s += computes * 0.1
            if signs:
                self.signs.gave(self.now)
            told = self.signs.look(self.now, self.computed_s)
            self.told += [] if told is None else [told]
        return self.signs.stands_still(self.now)


def test_before_its_first_sign_nothing_is_made_of_it() -> None:
    watched = Watched()
    assert not watched.live(60_000, signs=False, computes=False)
    assert not watched.live(60_000, signs=False, computes=True)
    assert not watched.told


def test_one_that_computes_without_a_sign_is_busy_until_it_has_given_signs_for_a_while() -> None:
    watched = Watched()
    watched.live(1_000, signs=True, computes=True)
    assert not watched.live(limits.ROLE_BUSY_MS, signs=False, computes=True)
    assert not watched.told
    assert not watched.live(60_000, signs=False, computes=True)
    assert watched.told == [Busy(1, is_over=False)]
    watched.live(limits.ROLE_BUSY_MS, signs=True, computes=False)
    assert watched.told == [Busy(1, is_over=False)]
    watched.live(2 * limits.ROLE_BEAT_MS, signs=True, computes=False)
    assert watched.told == [Busy(1, is_over=False), Busy(1, is_over=True)]


def test_it_can_be_busy_again() -> None:
    watched = Watched()
    for _ in range(2):
        watched.live(2 * limits.ROLE_BUSY_MS, signs=True, computes=True)
        watched.live(2 * limits.ROLE_BUSY_MS, signs=False, computes=True)
    assert [(busy.number, busy.is_over) for busy in watched.told] == [(1, False), (1, True), (2, False)]


def test_one_that_gives_no_sign_and_computes_nothing_stands_still() -> None:
    watched = Watched()
    assert not watched.live(limits.ROLE_STALLED_MS, signs=True, computes=False)
    assert not watched.live(limits.ROLE_STALLED_MS, signs=False, computes=False)
    assert watched.live(limits.ROLE_BEAT_MS, signs=False, computes=False)
    assert not watched.told
