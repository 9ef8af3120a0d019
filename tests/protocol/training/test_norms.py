"""The squared norms of a step's roots, over all shards."""

from dmi_protocol.training import exchange as x
from dmi_protocol.training.norms import Norms

OWN = ((1, 1.0), (3, 9.0))
THEIRS = ((0, 4.0), (2, 2.0))
ALL = ((0, 4.0), (1, 1.0), (2, 2.0), (3, 9.0))


def measured(step: int) -> Norms:
    norms = Norms(1)
    norms.begin(step)
    assert norms.measured(step, 3, 9.0, 2) == []
    assert norms.measured(step, 1, 1.0, 2) == [x.TellNorms(step, OWN)]
    return norms


def test_they_are_complete_when_every_shard_has_told_them() -> None:
    norms = measured(0)
    assert not norms.are_complete((0, 1))
    norms.heard(0, THEIRS)
    norms.heard(0, ((0, 5.0),))
    assert norms.are_complete((0, 1))
    assert norms.all() == ALL, "what comes again says nothing new"
    norms.begin(1)
    assert not norms.are_complete((0, 1))
    assert norms.all() == ()


def test_those_of_the_last_two_steps_are_told_again() -> None:
    norms = measured(0)
    assert norms.again() == [x.TellNorms(0, OWN)]
    norms.begin(1)
    assert norms.again() == [x.TellNorms(0, OWN)], "somebody may still be a step behind"
    norms.begin(2)
    assert norms.again() == []


def test_what_a_copy_was_given_for_this_step_is_known() -> None:
    norms = Norms(1)
    norms.begin(4)
    norms.take_over(4, (4, ALL), (1, 3))
    assert norms.are_known
    assert norms.are_complete((0, 1))
    assert norms.all() == ALL
    assert norms.again() == [x.TellNorms(4, OWN)]
    norms.begin(5)
    assert not norms.are_known


def test_what_a_copy_was_given_for_the_step_before_is_only_told_again() -> None:
    norms = Norms(1)
    norms.begin(5)
    norms.take_over(5, (4, ALL), (1, 3))
    assert not norms.are_known
    assert norms.all() == ()
    assert norms.again() == [x.TellNorms(4, OWN)]
