"""Who may take part in a shard's training, and from when on."""

import pytest

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.training import exchange as x
from dmi_protocol.training.reception import Reception

FIELDS = (("data", "1797"), ("torch", "2"))
OPENED = x.Opened((0, 1), (4,), 2, clips=False, shards=(0,))


def greet(reception: Reception, worker: int, fields: tuple[tuple[str, str], ...] = FIELDS) -> x.Disagree | None:
    return reception.greeted(x.Greeted(worker, fields, b"model"))


def taken_over(roster: x.Rostered) -> Reception:
    """That of a copy that was promoted."""
    reception = Reception(roster)
    reception.take_over(b"model", FIELDS, OPENED)
    return reception


def test_nobody_is_welcome_before_all_have_greeted_and_every_bucket_is_there() -> None:
    reception = Reception(x.Rostered(1, (0, 1), 0))
    assert greet(reception, 0) is None
    assert reception.opened(OPENED) is None
    for bucket in (0, 1, 4):
        assert not reception.has_everything
        reception.initialized(bucket)
    assert reception.has_everything
    assert reception.welcome(0) == [], "worker 1 has not greeted"
    assert greet(reception, 1) is None
    assert reception.welcome(0) == [x.WelcomeWorker(0, 0), x.WelcomeWorker(1, 0)]
    assert reception.welcome(0) == [], "once is enough"
    assert greet(reception, 1) is None
    assert reception.welcome(3) == [x.WelcomeWorker(1, 3)], "who greets again has not heard it"


def test_a_bucket_of_another_shard_is_the_peers_fault() -> None:
    reception = Reception(x.Rostered(1, (0,), 0))
    greet(reception, 0)
    reception.opened(OPENED)
    with pytest.raises(RemoteProtocolError):
        reception.initialized(2)


def test_the_beginning_does_not_wait_for_joiners_and_joiners_wait_for_the_lead() -> None:
    reception = Reception(x.Rostered(1, (0, 1), 0, joiners=(1,)))
    greet(reception, 0)
    greet(reception, 1)
    reception.opened(x.Opened((0, 1), (4,), 2, clips=False, shards=(0,), step=5))
    assert reception.welcome(5) == [x.WelcomeWorker(0, 5)]
    assert reception.welcome_joiners(7, b"kept") == [x.WelcomeWorker(1, 7, b"kept")]
    assert reception.welcome_joiners(8, b"kept") == []


def test_who_is_gone_is_welcome_only_when_it_greets_again() -> None:
    reception = taken_over(x.Rostered(1, (0, 1), 0))
    greet(reception, 0)
    greet(reception, 1)
    assert reception.welcome(3) == [x.WelcomeWorker(0, 3), x.WelcomeWorker(1, 3)]
    reception.roster(x.Rostered(2, (0,), 0))
    reception.roster(x.Rostered(3, (0, 1), 0))
    assert reception.welcome(4) == []
    greet(reception, 1)
    assert reception.welcome(4) == [x.WelcomeWorker(1, 4)]


def test_at_the_beginning_a_missing_field_is_a_contradiction() -> None:
    reception = Reception(x.Rostered(1, (0, 1), 0))
    greet(reception, 0)
    assert isinstance(greet(reception, 1, (("torch", "2"),)), x.Disagree)


def test_who_comes_late_is_compared_as_those_who_began() -> None:
    reception = taken_over(x.Rostered(1, (0, 1), 0))
    assert greet(reception, 0) is None
    assert greet(reception, 1, ((FIELDS[0][0], "another"), *FIELDS[1:])) == x.Disagree(
        1, 0, FIELDS[0][0], "another", FIELDS[0][1]
    )


def test_another_definition_is_a_contradiction() -> None:
    reception = taken_over(x.Rostered(1, (0, 1), 0))
    found = reception.greeted(x.Greeted(1, FIELDS, b"another"))
    assert found == x.Disagree(1, None, "the model or the optimizer", "", "")
    assert reception.definition == b"model"
    assert reception.welcome(0) == []
