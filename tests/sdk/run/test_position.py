"""What is remembered of rounds, and when it is forgotten."""

import pytest

from dmi.errors import UsageError
from dmi.run.position import Given, Position
from dmi_protocol import limits


def round_of(position: Position, value: bytes = b"v") -> None:
    assert position.begin_round() is None
    position.end_round(Given(0, value))


def test_rounds_of_earlier_steps_and_epochs_are_forgotten() -> None:
    position = Position()
    for epoch in range(3):
        position.epoch = epoch
        position.begin_epoch()
        for step in range(4):
            position.begin_step(is_first=not step)
            position.mark()
            round_of(position)
        assert {key[:2] for key in position.rounds} <= {(epoch - 1, 4), (epoch, 3), (epoch, 4)}


def test_outside_of_epochs_one_pass_after_another_is_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROUNDS_BYTES", 3_500)
    position = Position()
    for _ in range(3):
        position.begin_step(is_first=True)
        position.mark()
        round_of(position, b"v" * 1_000)
    assert len(position.rounds) == 3
    position.begin_step(is_first=True)
    with pytest.raises(UsageError, match=r"4 evaluations and broadcasts, .* put the loop into run.epochs"):
        round_of(position, b"v" * 1_000)
