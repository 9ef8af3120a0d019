"""Which news overrides which: every pair (SWIM, 4.2)."""

import itertools

from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.membership.member import Member, overrides
from dmi_protocol.messages.membership import Standing, Update

A = NodeId("a" * 16)
ORDER: list[Standing] = ["alive", "suspect", "dead", "left"]


def test_incarnations_count_first_and_then_the_graver_news() -> None:
    for (rank, old), (newer, new), before, after in itertools.product(
        enumerate(ORDER), enumerate(ORDER), range(3), range(3)
    ):
        expected = (after, newer) > (before, rank) if after == before else after > before
        assert overrides(Update(A, new, after), Member(old, before, Instant(0), set())) == expected


def test_two_pieces_of_news_never_override_each_other() -> None:
    """So that all nodes come to the same belief, in whatever order they hear."""
    for old, new, before, after in itertools.product(ORDER, ORDER, range(3), range(3)):
        forth = overrides(Update(A, new, after), Member(old, before, Instant(0), set()))
        back = overrides(Update(A, old, before), Member(new, after, Instant(0), set()))
        assert not (forth and back)
