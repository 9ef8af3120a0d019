"""What a worker writes down."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmi.run import records
from dmi.run.records import Ledger, ProgressReporter
from dmi_protocol import limits
from dmi_protocol.messages.roles import FromRole, Progressed
from dmi_wire.child import Child


class Told(Child):
    """A daemon that remembers what it is told."""

    def __init__(self) -> None:
        self.messages: list[FromRole] = []

    def tell(self, message: FromRole) -> None:
        self.messages.append(message)


def test_the_speed_is_that_of_all_steps_since_it_was_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step by itself says little: the last one of an epoch is smaller, and two may be done at almost one time."""
    now = iter([10.0, 10.0, 10.1, 10.25, 10.3, 10.35])
    monkeypatch.setattr(records, "time", SimpleNamespace(monotonic=now.__next__))
    child = Told()
    progress = ProgressReporter(child)
    for step, samples in enumerate((0, 128, 29, 128, 128), start=1):
        progress.made(step, 5, samples, None, tells=True)
    told = [message for message in child.messages if isinstance(message, Progressed)]
    assert [(message.step, round(message.samples_per_second)) for message in told] == [(3, 628), (5, 2560)]


def test_only_the_lead_tells() -> None:
    child = Told()
    ProgressReporter(child).made(5, 5, 1, None, tells=False)
    assert child.messages == []


def test_every_leaf_is_a_line_of_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.note(3, 1, 16)
    ledger.note(3, 2, 15)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines == [{"step": 3, "leaf": 1, "samples": 16}, {"step": 3, "leaf": 2, "samples": 15}]


def test_a_ledger_that_cannot_be_written_ends_and_the_training_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path / "gone")
    for step in (3, 4):
        ledger.note(step, 1, 16)
    assert capsys.readouterr().err == "the ledger of this worker ends at step 3: No such file or directory\n"


def test_a_ledger_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "LEDGER_BYTES", 100)
    ledger = Ledger(tmp_path)
    for step in range(9):
        ledger.note(step, 1, 16)
    assert (tmp_path / "ledger.jsonl").stat().st_size <= 100
    assert "ends at step 2: it has 100 bytes" in capsys.readouterr().err
