"""The verbs as a whole: help, typing errors, exit codes, and what is not imported."""

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dmi_node.cli.main import _SUMMARIES, _VERBS, cli
from tests.sdk.fake_node import FakeNode, value

VERBS = [
    "run", "up", "down", "status", "members", "roles", "jobs", "submit", "logs", "why", "cancel", "export",
    "rm", "models", "df", "infer", "serve", "unserve", "token",
    "invite", "join", "leave", "drain", "expel", "version",
]  # fmt: skip


def test_the_verbs_are_those_of_the_design() -> None:
    assert set(_VERBS) == set(VERBS) == set(_SUMMARIES)


def test_help_lists_every_verb() -> None:
    shown = CliRunner().invoke(cli, ["--help"])
    assert shown.exit_code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in shown.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    shown = CliRunner().invoke(cli, [verb, "--help"])
    assert shown.exit_code == 0
    assert f"Example: dmi-node {verb}" in shown.output
    assert "--home" in shown.output


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "run"])
def test_every_verb_that_prints_has_json(verb: str) -> None:
    command = getattr(importlib.import_module(f"dmi_node.cli.{_VERBS[verb]}"), verb)
    assert isinstance(command, click.Command)
    assert any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("sumbit", "submit"), ("member", "members")])
def test_a_typing_error_gets_the_nearest_verb(typed: str, meant: str) -> None:
    shown = CliRunner().invoke(cli, [typed])
    assert shown.exit_code == 2
    assert f"did you mean {meant!r}?" in shown.stderr


def test_a_word_that_is_near_nothing_gets_the_way_to_the_list() -> None:
    shown = CliRunner().invoke(cli, ["qqqqqq"])
    assert shown.exit_code == 2
    assert "`dmi-node --help`" in shown.stderr


@pytest.mark.parametrize("verb", ["status", "members", "roles", "jobs", "leave"])
def test_no_node_is_exit_3_and_one_line(tmp_path: Path, verb: str) -> None:
    shown = CliRunner().invoke(cli, ["--home", str(tmp_path / "none"), verb])
    assert shown.exit_code == 3
    assert shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1
    assert str(tmp_path / "none") in shown.stderr


def test_the_home_may_stand_before_or_after_the_verb_and_the_later_wins(tmp_path: Path) -> None:
    with FakeNode(tmp_path, jobs=value([])):
        for arguments in (
            ["--home", str(tmp_path), "jobs"],
            ["jobs", "--home", str(tmp_path)],
            ["--home", "/nowhere", "jobs", "--home", str(tmp_path)],
        ):
            assert CliRunner().invoke(cli, [*arguments, "--json"]).output == "[]\n"


def imported_by(*arguments: str) -> set[str]:
    """The top-level modules that the command has loaded when it ends."""
    program = (
        "import sys\nfrom dmi_node.cli.main import cli\n"
        "try:\n    cli(sys.argv[1:], prog_name='dmi-node')\n"
        "finally:\n    print('LOADED', *{n.partition('.')[0] for n in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_asking_a_mesh_loads_neither_the_daemon_nor_torch(tmp_path: Path) -> None:
    """Every import is time that a person waits."""
    with FakeNode(tmp_path, jobs=value([])):
        loaded = imported_by("jobs", "--home", str(tmp_path))
    assert "click" in loaded
    assert not loaded & {"torch", "numpy", "rich", "zmq", "uvloop", "asyncio", "sqlite3"}


def test_the_daemon_loads_neither_torch_nor_rich(tmp_path: Path) -> None:
    loaded = imported_by("run", "--home", str(tmp_path), "--listen", "no address")
    assert {"uvloop", "zmq"} <= loaded
    assert not loaded & {"torch", "numpy", "rich"}
