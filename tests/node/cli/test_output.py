"""What people read: tables, numbers, and which losses can be survived."""

from typing import Any

import pytest

from dmi_node.cli import output
from tests.sdk.fake_node import JOB


def test_a_table_that_is_not_on_a_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("node", "state"), [["n0", "alive"], ["a-long-name", None]])
    assert capsys.readouterr().out == "node         state\nn0           alive\na-long-name  -\n"


def test_an_empty_table_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("node", "state"), [])
    assert capsys.readouterr().out == "node  state\n"


@pytest.mark.parametrize(
    ("step", "steps", "shown"), [(None, None, "-"), (3, None, "3"), (3, 12, "3 of 12"), (0, 12, "0 of 12")]
)
def test_progress(step: int | None, steps: int | None, shown: str) -> None:
    assert output.progress_of(JOB | {"step": step, "steps": steps}) == shown


def test_a_job_that_has_not_begun_has_dashes() -> None:
    row = output.job_row(JOB | {"step": None, "samples_per_second": None, "loss": None})
    assert row == ["digits-1a2b", "succeeded", "-", "-", "-", ""]


def voters(*states: str) -> dict[str, Any]:
    return {"members": [{"voter": True, "state": state} for state in states] + [{"voter": False, "state": "alive"}] * 4}


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("alive",), "no voter can be lost now"),
        (("alive",) * 3, "1 of 3 voters can be lost now"),
        (("alive", "alive", "dead"), "no voter can be lost now"),
        (("alive", "suspect", "dead"), "nothing can be decided"),
        (("alive",) * 5, "2 of 5 voters can be lost now"),
    ],
)
def test_which_losses_can_be_survived(states: tuple[str, ...], said: str) -> None:
    assert output.survives(voters(*states)).startswith(said)


def test_the_end_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        output.end("gone", output.NO_NODE)
    assert caught.value.code == 3
    assert capsys.readouterr() == ("", "gone\n")
