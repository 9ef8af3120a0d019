"""Which steps the workers have begun, and who holds whom up."""

from msgspec.structs import replace

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


def test_workers_that_begin_a_step_unlike_each_other_are_named() -> None:
    begun = Beginnings(x.Rostered(1, (0, 1), 0))
    first = x.Began(0, 4, (1,), b"lr", None, b"digest", "length of the data 7")
    assert begun.contradiction(first) is None
    assert begun.contradiction(replace(first, worker=1)) is None
    written = begun.contradiction(replace(first, worker=1, written=b""))
    assert written == x.Disagree(1, 0, "the buffers that the script wrote between the steps", "", "")
    data = begun.contradiction(replace(first, worker=1, data="length of the data 8"))
    assert data == x.Disagree(1, 0, "the data", "length of the data 8", "length of the data 7")


def test_a_joiner_has_nothing_in_place_before_it_begins() -> None:
    begun = Beginnings(x.Rostered(1, (0, 2), 0, joiners=(2,)))
    begun.come_in(2, 4)
    assert begun.has_begun(2, 3)
    assert not begun.has_installed(2, 3), "it is shown all of version 4"
    begun.note(x.Began(2, 4, (1,), b"lr"))
    assert begun.has_installed(2, 4)
    begun.roster(x.Rostered(2, (0,), 0))
    assert not begun.has_installed(2, 4)


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
