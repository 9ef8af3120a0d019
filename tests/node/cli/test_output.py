"""Tables where there is no terminal, and how a command ends."""

import pytest

from dmi_node.cli import output


def test_a_table_that_is_not_on_a_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("node", "state"), [["n0", "alive"], ["a-long-name", None]])
    assert capsys.readouterr().out == "node         state\nn0           alive\na-long-name  -\n"


def test_an_empty_table_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("node", "state"), [])
    assert capsys.readouterr().out == "node  state\n"


def test_the_end_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        output.end("gone", output.NO_NODE)
    assert caught.value.code == 3
    assert capsys.readouterr() == ("", "gone\n")
