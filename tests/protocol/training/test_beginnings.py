"""Which steps the workers have begun, and who holds whom up."""

from dmi_protocol.training import exchange as x
from dmi_protocol.training.beginnings import Beginnings


def test_joiners_hold_nobody_up_before_they_come_in() -> None:
    begun = Beginnings(x.Rostered(1, (0, 1, 2), 0, joiners=(2,)))
    begun.note(x.Began(0, 4, (1,), b"lr"))
    assert begun.has_lead_begun(4)
    assert not begun.has_everybody_begun(4)
    begun.note(x.Began(1, 4, (1,), b"lr"))
    assert begun.has_everybody_begun(4)
    assert begun.attached() == (0, 1)
    begun.come_in(2, 4)
    assert begun.attached() == (0, 1, 2)
    assert not begun.has_everybody_begun(4), "its version is kept for it"
    assert begun.has_everybody_begun(3)


def test_who_is_gone_holds_nobody_up() -> None:
    begun = Beginnings(x.Rostered(1, (0, 1), 0))
    begun.note(x.Began(0, 4, (1,), b"lr"))
    begun.note(x.Began(1, 3, (1,), b"lr"))
    assert not begun.has_everybody_begun(4)
    begun.roster(x.Rostered(2, (0,), 0))
    assert begun.has_everybody_begun(4)
    assert begun.beyond(3) == (0,)
    begun.roster(x.Rostered(3, (0, 1), 1))
    assert not begun.has_lead_begun(0), "worker 1 is back, and must begin anew"


def test_what_comes_late_sets_nobody_back() -> None:
    begun = Beginnings(x.Rostered(1, (0,), 0))
    begun.note(x.Began(0, 4, (1,), b"lr"))
    begun.note(x.Began(0, 3, (1,), b"lr"))
    begun.come_in(0, 2)
    assert begun.beyond(4) == (0,)
    assert begun.beyond(5) == ()


def test_the_first_to_begin_a_step_says_how() -> None:
    begun = Beginnings(x.Rostered(1, (0, 1), 0))
    assert begun.hyper(0) is None
    assert begun.contradiction(x.Began(1, 0, (2, 1), b"0.1")) is None
    assert begun.hyper(0) == b"0.1"
    assert begun.contradiction(x.Began(0, 0, (2, 1), b"0.2")) == x.Disagree(0, 1, "hyperparameters", "", "")
    found = begun.contradiction(x.Began(0, 0, (2, 2), b"0.1"))
    assert found == x.Disagree(0, 1, "samples in the batch", "4", "3")
    assert begun.contradiction(x.Began(0, 1, (2, 2), b"0.2")) is None, "another step may differ"
    assert begun.hyper(0) is None
