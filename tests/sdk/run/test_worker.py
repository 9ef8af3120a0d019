"""The worker's process, with the test as its daemon: how a job fails that cannot go on."""

from pathlib import Path

import pytest

from bench.roles import Failed, RoleProcesses

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parent / "small.py"


def fails(directory: Path, text: str, workers: int = 1) -> Failed:
    """The failure of a job whose script is ``text``."""
    script = directory / "script.py"
    script.write_text(text)
    with RoleProcesses(directory / "roles", script, workers=workers, servers=1, leaves=None) as roles:
        roles.introduce()
        said = roles.finish()
    return next(message for told in said.values() for message in told if isinstance(message, Failed))


def test_a_script_that_raises_gives_its_own_traceback(tmp_path: Path) -> None:
    text = """import atexit, os
log = open("log.txt", "w")
def inner():
    log.write("kept")
    raise ValueError('no such thing')
atexit.register(lambda: open("handler.txt", "w").write("ran"))
inner()
"""
    failed = fails(tmp_path, text)
    assert {path.name: path.read_text() for path in tmp_path.rglob("*.txt")} == {
        "log.txt": "kept",
        "handler.txt": "ran",
    }
    assert failed.kind == "script-raised"
    lines = failed.text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert 'script.py", line 7, in <module>' in lines[1]
    assert lines[-1] == "ValueError: no such thing"
    assert "runpy" not in failed.text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("x = (\n", "SyntaxError", marks=pytest.mark.deep),
        ("import no_such_package\n", "'no_such_package' is not installed"),
    ],
)
def test_a_script_that_cannot_start_says_so(tmp_path: Path, text: str, part: str) -> None:
    failed = fails(tmp_path, text)
    assert (failed.kind, failed.starting) == ("cannot-start", True)
    assert part in failed.text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import sys\nsys.exit(3)\n", "exit code 3"),
        pytest.param("print('hello')\n", "trains nothing", marks=pytest.mark.deep),
        pytest.param("import dmi\ndmi.init()\n", "call run.model", marks=pytest.mark.deep),
    ],
)
def test_exit_codes_and_scripts_without_a_run_are_failures(tmp_path: Path, text: str, part: str) -> None:
    assert part in fails(tmp_path, text).text


def test_data_that_differs_between_hosts_names_both_and_the_field(tmp_path: Path) -> None:
    text = (
        SCRIPT.read_text()
        .replace("83", "83 + 32 * (os.getpid() % 1000)")
        .replace("import sys", "import os\nimport sys")
    )
    failed = fails(tmp_path, text.replace("sys.argv[1]", "'none'"), workers=2)
    assert "worker-" in failed.text
    assert "@n0" in failed.text
    assert "@n1" in failed.text
    assert "of the data" in failed.text
