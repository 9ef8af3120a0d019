"""A removal waits until the member's vote is another's."""

from dmi_protocol.cluster.command import Remove
from dmi_protocol.cluster.removals import HOLD_MS, Removals
from dmi_protocol.identity import NodeId, RequestId
from dmi_protocol.instant import Instant

A, B = NodeId("a" * 16), NodeId("b" * 16)
GO = Remove(RequestId("go"), B)


def test_it_is_ready_once_when_the_member_is_not_needed_any_more() -> None:
    removals = Removals()
    removals.hold(Instant(0), GO)
    assert removals.going(Instant(1)) == {B}
    assert removals.ready({A, B}) == []
    assert removals.ready({A}) == [GO]
    assert removals.ready({A}) == []
    assert removals.going(Instant(2)) == frozenset()


def test_asking_again_makes_it_last_no_longer() -> None:
    removals = Removals()
    removals.hold(Instant(0), GO)
    removals.hold(Instant(HOLD_MS - 1), GO)
    assert removals.going(Instant(HOLD_MS - 1)) == {B}
    assert removals.going(Instant(HOLD_MS)) == frozenset()
    assert removals.ready({A}) == []


def test_who_does_not_lead_any_more_forgets_it() -> None:
    removals = Removals()
    removals.hold(Instant(0), GO)
    removals.forget()
    assert removals.ready({A}) == []
