"""What a stage passes on, and what becomes of it when the next one is slow, dies, or has another version."""

from random import Random

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.instant import Instant, after
from dmi_protocol.serving import events as on
from dmi_protocol.serving.passing import GoesBack, Passing, PassingEffect, PassOn

NOW = Instant(1_000)


def passing(*replicas: str, stages: int = 1) -> Passing:
    made = Passing(stages, Random(0))
    made.step(NOW, on.FleetTold(frozenset(replicas)))
    for name in replicas:
        hear(made, name, "m:1")
    return made


def hear(made: Passing, name: str, *versions: str) -> list[PassingEffect]:
    made.step(NOW, on.Opened(name))
    return made.step(NOW, on.Heard(name, 0, frozenset(versions)))


def give(made: Passing, number: int, version: str = "m:1") -> list[PassingEffect]:
    effects = made.step(NOW, PassOn(number, 4, version, after(NOW, 5_000)))
    made.check()
    return effects


def dispatched(effects: list[PassingEffect]) -> on.Dispatch:
    (found,) = effects
    assert isinstance(found, on.Dispatch)
    return found


def test_what_is_computed_goes_back() -> None:
    made = passing("r")
    sent = dispatched(give(made, 7))
    assert (sent.replica, sent.version, made.number("r", sent.batch)) == ("r", "m:1", 7)
    assert made.step(NOW, on.Computed("r", sent.batch, "m:1")) == [GoesBack(7, is_computed=True)]
    assert (made.batches, made.number("r", sent.batch)) == (0, None)


def test_as_many_are_under_way_as_there_are_stages_and_one_in_hand_of_each() -> None:
    made = passing("r", stages=2)
    assert [len(give(made, number)) for number in range(6)] == [1, 1, 1, 1, 0, 0]
    assert (made.batches, made.rows) == (6, 24)


def test_batches_are_never_joined() -> None:
    made = passing()
    give(made, 1)
    give(made, 2)
    made.step(NOW, on.FleetTold(frozenset({"r"})))
    found = [effect for effect in hear(made, "r", "m:1") if isinstance(effect, on.Dispatch)]
    assert [[piece.request for piece in each.pieces] for each in found] == [[1], [2]]


def test_of_what_a_lost_replica_had_the_first_goes_back_and_the_next_to_another_one() -> None:
    made = passing("r")
    first, second = dispatched(give(made, 1)), dispatched(give(made, 2))
    assert (first.replica, second.replica) == ("r", "r")
    assert made.step(NOW, on.Broke("r")) == [GoesBack(1, has_died=True)]
    made.step(NOW, on.FleetTold(frozenset({"s"})))
    assert dispatched(hear(made, "s", "m:1")).pieces[0].request == 2
    made.check()


def test_a_process_that_dies_of_a_batch_is_told_to_whoever_gave_it() -> None:
    made = passing("r", "s")
    sent = dispatched(give(made, 1))
    assert made.step(NOW, on.Died(sent.replica, sent.batch)) == [GoesBack(1, has_died=True)]


def test_without_anybody_it_waits_and_in_time_goes_back() -> None:
    made = passing()
    assert give(made, 1) == []
    due = made.deadline()
    assert due == after(NOW, 5_000)
    assert made.tick(due) == [GoesBack(1)]
    assert made.batches == 0


def test_what_nobody_has_the_version_for_goes_back() -> None:
    made = passing("r")
    assert give(made, 1, "m:0") == [GoesBack(1)]
    assert dispatched(give(made, 2)).pieces[0].request == 2
    sent = dispatched(give(made, 3))
    made.step(NOW, on.Declined("r", sent.batch))
    back = hear(made, "r", "m:2")
    assert GoesBack(3) in back or made.batches == 1
    made.check()


def test_a_version_is_under_way_until_all_of_it_is_back() -> None:
    made = passing("r")
    sent = dispatched(give(made, 1))
    assert (made.has("m:1"), made.has("m:2")) == (True, False)
    made.step(NOW, on.Computed("r", sent.batch, "m:1"))
    assert not made.has("m:1")


def test_enough_under_way_is_told_and_what_is_computed_is_taken_however_large() -> None:
    made = passing("r")
    large = PassOn(1, 4, "m:1", after(NOW, 5_000), size_bytes=limits.PASSED_BYTES)
    told = [made.is_full]
    sent = dispatched(made.step(NOW, large))
    told.append(made.is_full)
    second = dispatched(made.step(NOW, replace(large, number=2)))
    for each in (sent, second):
        made.step(NOW, on.Computed("r", each.batch, "m:1"))
        told.append(made.is_full)
    assert told == [False, True, True, False]


def test_many_without_a_version_go_back_at_once() -> None:
    made = passing()
    for number in range(3_000):
        give(made, number, "m:0")
    made.step(NOW, on.FleetTold(frozenset({"r"})))
    back = hear(made, "r", "m:1")
    assert [effect.number for effect in back if isinstance(effect, GoesBack)] == list(range(3_000))
    assert made.batches == 0
