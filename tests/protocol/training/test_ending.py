"""Parts of checkpoints, and the end of a job."""

from dmi_protocol.training import exchange as x
from dmi_protocol.training.ending import Ending

FIELDS = (("torch", "2"),)
OVER = [x.SayFinished((0, 1)), x.End()]


def ending(joiners: tuple[int, ...] = ()) -> Ending:
    return Ending(x.Rostered(1, (0, 1, *joiners), 0, joiners=joiners))


def test_a_part_is_written_once_and_only_for_the_lead() -> None:
    made = ending()
    part = [x.WritePart(3, b"kept", final=False, fingerprint=FIELDS)]
    assert made.checkpoint(x.CheckpointAsked(1, 3, b""), FIELDS) == []
    assert made.checkpoint(x.CheckpointAsked(0, 3, b"kept"), FIELDS) == part
    assert made.checkpoint(x.CheckpointAsked(0, 3, b"kept"), FIELDS) == []
    made.roster(x.Rostered(2, (1,), 1))
    assert made.checkpoint(x.CheckpointAsked(1, 3, b""), FIELDS) == [], "the lead before it had asked for this one"
    assert made.checkpoint(x.CheckpointAsked(1, 4, b""), FIELDS) != []


def test_it_is_over_when_the_last_part_is_durable_and_all_scripts_are_over() -> None:
    made = ending(joiners=(2,))
    assert made.finish(x.FinishAsked(1, 4, b""), FIELDS) == []
    final = [x.WritePart(4, b"kept", final=True, fingerprint=FIELDS)]
    assert made.finish(x.FinishAsked(0, 4, b"kept"), FIELDS) == final
    assert made.finish(x.FinishAsked(0, 4, b"kept"), FIELDS) == [], "the lead says it again"
    assert made.durable(final=False) == []
    assert made.durable(final=True) == OVER, "a joiner is not waited for"


def test_nobody_waits_for_who_is_gone() -> None:
    made = ending()
    made.finish(x.FinishAsked(0, 4, b""), FIELDS)
    assert made.durable(final=True) == []
    assert made.roster(x.Rostered(2, (0,), 0)) == [x.SayFinished((0,)), x.End()]


def test_a_new_lead_has_the_last_part_written_when_the_one_before_could_not() -> None:
    made = ending()
    made.finish(x.FinishAsked(1, 4, b""), FIELDS)
    assert made.roster(x.Rostered(2, (1,), 1)) == []
    final = [x.WritePart(4, b"again", final=True, fingerprint=FIELDS)]
    assert made.finish(x.FinishAsked(1, 4, b"again"), FIELDS) == final, "it asks again in the new generation"
    assert made.durable(final=True) == [x.SayFinished((1,)), x.End()]


def test_what_differs_from_the_lead_s_is_told_once() -> None:
    made = ending()
    mine, same, other = (("a", "1"), ("b", "2")), (("b", "2"), ("a", "1")), (("a", "1"), ("b", "3"), ("c", "4"))
    made.finish(x.FinishAsked(0, 4, b"", mine), FIELDS)
    made.finish(x.FinishAsked(1, 4, b"", other), FIELDS)
    assert made.durable(final=True) == [x.TellDifference(1, 0, ("b", "c")), *OVER]
    assert made.roster(x.Rostered(2, (0, 1), 0)) == OVER
    alike = ending()
    alike.finish(x.FinishAsked(0, 4, b"", mine), FIELDS)
    alike.finish(x.FinishAsked(1, 4, b"", same), FIELDS)
    assert alike.durable(final=True) == OVER
