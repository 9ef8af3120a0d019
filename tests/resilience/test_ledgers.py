"""What a set of ledgers proves, and what is found wrong with one."""

from pathlib import Path

import pytest

from tests.resilience.ledgers import Entry, account, read


def whole(process: str = "n0/1/worker-0", steps: int = 3) -> list[Entry]:
    return [Entry(process, step, leaf, 16) for step in range(steps) for leaf in range(2)]


def test_every_leaf_once() -> None:
    assert account(whole(), 3, 2) == (3, 0, ())


def test_another_process_may_compute_a_step_again() -> None:
    again = [entry for entry in whole("n1/2/worker-0") if entry.step == 2]
    assert account(whole() + again, 3, 2) == (3, 2, ())


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        (whole()[1:], "nobody computed leaf 0 of step 0"),
        ([*whole(), Entry("n1/2/worker-0", 3, 0, 16)], "is no leaf of the job"),
        ([*whole(), Entry("n1/2/worker-0", 2, 0, 15)], "had [15, 16] samples"),
        ([*whole(), whole()[0]], "2 times"),
    ],
)
def test_what_is_wrong_is_named(entries: list[Entry], word: str) -> None:
    (sentence,) = account(entries, 3, 2).wrong
    assert word in sentence


def test_a_torn_line_is_no_entry(tmp_path: Path) -> None:
    ledger = tmp_path / "n1" / "jobs" / "job" / "1" / "worker-0" / "ledger.jsonl"
    ledger.parent.mkdir(parents=True)
    ledger.write_text('{"step": 0, "leaf": 1, "samples": 16}\n{"step": 0, "le')
    assert read(tmp_path, "job") == [Entry("n1/jobs/job/1/worker-0/ledger.jsonl", 0, 1, 16)]
