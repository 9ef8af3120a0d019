"""How a script's end is told, in one process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmi.run.script import CANNOT_START, DISK, EXITED, RAISED, Ending, run_script


@pytest.fixture(autouse=True)
def own_interpreter_state() -> Iterator[None]:
    """A script gets ``sys.argv`` and ``sys.path`` as Python sets them; the test's own come back."""
    argv, path = list(sys.argv), list(sys.path)
    yield
    sys.argv[:], sys.path[:] = argv, path


def end(directory: Path, text: str, *args: str) -> Ending | None:
    script = directory / "train.py"
    script.write_text(text)
    return run_script(script, args)


def test_a_script_sees_itself_its_arguments_and_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_the_script.py").write_text("value = 7\n")
    text = """
import sys
import neighbour_of_the_script
assert __name__ == "__main__"
assert sys.argv[1:] == ["--lr", "0.1"]
assert neighbour_of_the_script.value == 7
"""
    assert end(tmp_path, text, "--lr", "0.1") is None


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("import sys; sys.exit()", None),
        ("import sys; sys.exit(0)", None),
        ("import sys; sys.exit(4)", Ending(EXITED, "the script ended with exit code 4")),
        ("import sys; sys.exit('no data')", Ending(EXITED, "no data")),
        (
            "import no_such_package",
            Ending(CANNOT_START, "train.py:1: the package 'no_such_package' is not installed on this host"),
        ),
        (
            "from dmi.errors import UsageError\nraise UsageError('use run.optimizer')",
            Ending(RAISED, "train.py:2: use run.optimizer"),
        ),
    ],
)
def test_every_ending_has_its_line(tmp_path: Path, text: str, ending: Ending | None) -> None:
    assert end(tmp_path, text) == ending


def test_a_syntax_error_shows_its_line(tmp_path: Path) -> None:
    ending = end(tmp_path, "x = 1\ny = (\n")
    assert ending is not None
    assert ending.kind == CANNOT_START
    assert 'train.py", line 2' in ending.text


def test_a_traceback_shows_the_scripts_frames_and_their_causes(tmp_path: Path) -> None:
    text = "def inner():\n    {}['key']\ntry:\n    inner()\nexcept KeyError as error:\n    raise ValueError('outer') from error\n"
    ending = end(tmp_path, text)
    assert ending is not None
    assert ending.kind == RAISED
    assert "KeyError: 'key'" in ending.text
    assert ending.text.endswith("ValueError: outer")
    assert "runpy" not in ending.text
    assert "script.py" not in ending.text


def test_a_full_disk_is_the_trouble_of_its_host(tmp_path: Path) -> None:
    """Another host may have space, so the others take over."""
    ending = end(tmp_path, "import errno, os\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'note.txt')\n")
    assert ending is not None
    assert ending.kind == DISK
    assert ending.text.startswith("train.py:2: [Errno 28] No space left on device: 'note.txt'")
    ending = end(tmp_path, "open('no-such-file')\n")
    assert ending is not None
    assert ending.kind == RAISED
