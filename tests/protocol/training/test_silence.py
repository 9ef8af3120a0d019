"""Who is not heard is reported, again and again."""

from dmi_protocol import limits
from dmi_protocol.training.silence import Silences


def test_one_that_is_silent_is_reported_each_time_as_long_as_the_first() -> None:
    silences, every = Silences(), limits.PAIR_SILENT_MS
    reports = [
        report
        for ms in range(0, 3 * every + 1, 100)
        for report in silences.look(2, {("worker", 1): ms, ("worker", 2): 99})
    ]
    assert [(r.generation, r.role, r.index, r.silent_ms) for r in reports] == [
        (2, "worker", 1, times * every) for times in (1, 2, 3)
    ]


def test_each_report_has_a_number_so_that_none_is_taken_for_an_earlier_one() -> None:
    silences, every = Silences(), limits.PAIR_SILENT_MS
    first = silences.look(1, {("server", 0): every, ("server", 1): every})
    assert not silences.look(1, {("server", 0): every + 1, ("server", 1): 0})
    second = silences.look(1, {("server", 1): every})
    assert [report.index for report in (*first, *second)] == [0, 1, 1]
    assert [report.number for report in (*first, *second)] == [1, 2, 3]


def test_in_a_new_generation_it_is_reported_anew() -> None:
    silences, every = Silences(), limits.PAIR_SILENT_MS
    assert silences.look(1, {("server", 0): every})
    assert not silences.look(1, {("server", 0): every + 1})
    assert silences.look(2, {("server", 0): every + 1})
