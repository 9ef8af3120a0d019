"""The table, row by row."""

from tests.resilience.report import HEAD, Outcome, Skipped, table
from tests.resilience.watch import Recovery


def outcome(recovered_s: float | None, *, trouble: str | None = None) -> Outcome:
    return Outcome("a", "a worker", "digits", trouble is None, [Recovery(0.1, recovered_s)], trouble, ["n3 | lead"])


def test_runs_of_a_scenario_share_a_row() -> None:
    found = table([outcome(1.0), outcome(3.0), outcome(2.0)], []).splitlines()
    assert found[:2] == list(HEAD)
    assert found[2:] == ["| (a) a worker | digits | 3 | 3/3 | 0.10 | 2.00 | 3.00 | n3 / lead |"]


def test_trouble_is_told_before_notes() -> None:
    (row,) = table([outcome(None, trouble="hangs")], []).splitlines()[2:]
    assert row == "| (a) a worker | digits | 1 | 0/1 | 0.10 | - | - | hangs; n3 / lead |"


def test_what_was_not_run_has_a_reason() -> None:
    (row,) = table([], [Skipped("f", "partition", "needs root")]).splitlines()[2:]
    assert row.endswith("| not run: needs root |")
    assert row.count("|") == HEAD[0].count("|")
