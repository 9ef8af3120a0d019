"""Every reason has one line of its own."""

from typing import Any, get_args

import msgspec
import pytest

from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.identity import JobId
from dmi_protocol.reasons import (
    Loss,
    NodeLost,
    NoQuorum,
    PairSilent,
    Reason,
    RoleDied,
    RoleFailed,
    Starting,
    Succeeded,
    TakingOver,
    Weakened,
)
from dmi_protocol.sentences import detail, sentence

VALUES: dict[Any, Any] = {
    str: "word",
    int: 7,
    bool: False,
    tuple[str, ...]: ("n1", "n2"),
    tuple[tuple[str, str], ...]: (("worker-0", "n1"), ("server-1", "n2")),
    tuple[tuple[str, int, int], ...]: (("n1", 1, 5), ("n2", 0, 2_000)),
    tuple[int, int]: (2, 24 * 10**9),
    JobId: JobId("job-1"),
    int | None: 7,
    Loss: RoleDied("worker-0", "word", -9, 9, stalled=False),
}
REASONS = get_args(Reason)


def sample(kind: type[msgspec.Struct]) -> Any:
    return kind(**{field.name: VALUES[field.type] for field in msgspec.structs.fields(kind)})


@pytest.mark.parametrize("kind", REASONS)
def test_a_sentence_is_one_line_and_names_what_it_is_about(kind: type[msgspec.Struct]) -> None:
    reason = sample(kind)
    line = sentence(reason)
    assert line
    assert "\n" not in line
    assert line == line.strip()
    for field in msgspec.structs.fields(kind):
        if field.type in {str, JobId}:
            assert str(getattr(reason, field.name)) in line


def test_one_step_is_no_steps() -> None:
    assert sentence(Succeeded(1)).startswith("succeeded after 1 step;")
    assert sentence(Succeeded(2)).startswith("succeeded after 2 steps;")


def test_of_many_that_are_awaited_a_few_are_named() -> None:
    awaited = tuple((f"worker-{nth}", f"n{nth}") for nth in range(5))
    told = sentence(Starting(5, 10, awaited))
    assert told.endswith("waiting for worker-0 on n0, worker-1 on n1, worker-2 on n2, 2 more")


def test_no_two_reasons_read_alike() -> None:
    assert len({sentence(sample(kind)) for kind in REASONS}) == len(REASONS)


@pytest.mark.parametrize("kind", REASONS)
def test_a_reason_survives_the_wire(kind: type[msgspec.Struct]) -> None:
    reason = sample(kind)
    assert decode_struct(encode_struct(reason), Reason) == reason


def test_who_is_missing_from_a_quorum_is_named() -> None:
    line = sentence(NoQuorum(("n0",), ("n1", "n2")))
    assert "1 of 3" in line
    assert "n1, n2" in line


def test_a_traceback_gives_its_last_line_and_is_kept_as_detail() -> None:
    failed = RoleFailed("worker-0", "n1", "script", "Traceback\n  line 3\nValueError: no\n")
    assert sentence(failed).endswith("ValueError: no")
    assert detail(failed) == failed.text
    assert detail(RoleFailed("worker-0", "n1", "script", "one line\n")) is None
    assert sentence(RoleFailed("worker-0", "n1", "script", ""))


def test_the_ways_to_die_are_told_apart() -> None:
    ways = [(3, 0, False), (-9, 9, False), (-9, 9, True)]
    lines = [sentence(RoleDied("w", "n", code, signal, stalled)) for code, signal, stalled in ways]
    assert len(set(lines)) == 3
    assert "code 3" in lines[0]
    assert "signal 9" in lines[1]


def test_a_job_that_goes_on_after_a_loss_says_so() -> None:
    assert {TakingOver, Weakened, PairSilent} <= set(REASONS)
    loss = NodeLost("worker-1", "n1")
    assert sentence(TakingOver(loss)).startswith(sentence(loss))
    weak = sentence(Weakened(loss, ("n0", "n2"), 2, 3))
    assert weak.startswith(sentence(loss))
    assert "n0, n2" in weak
    assert "2 shards have no backup" in weak
    assert "3 processes" in weak
    whole = sentence(Weakened(loss, ("n0", "n2"), 0, 0))
    assert "backup" not in whole
    assert "more nodes" in whole


def test_two_that_could_not_talk_are_both_named() -> None:
    line = sentence(PairSilent("worker-1", "n1", "server-0", "n0", 2_500))
    assert "worker-1 on n1 and server-0 on n0" in line
    assert "2.5 s" in line
