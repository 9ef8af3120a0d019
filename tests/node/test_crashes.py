"""What ended a daemon is counted over its lives, and left alone from the third on."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import dmi
from dmi.errors import DmiError
from dmi_node.crashes import Crashes
from dmi_node.daemon import CRASHED
from dmi_protocol.blame import HOSTING, PLANNING, at
from tests.mesh.local import command, until

RUN = """
import sys, uvloop, os, pathlib
from dmi_node.config import Config
from dmi_node.daemon import serve
from dmi_protocol.jobs.hosting import Hosting
def odd(*_):
    raise TypeError("nobody thought of such a job")
Hosting._start = odd
uvloop.run(serve(pathlib.Path(sys.argv[1]), Config(listen="127.0.0.1:0", name="n0"), os.environ))
"""


def raised(activity: str, name: str) -> Exception:
    try:
        with at(activity, name):
            raise TypeError("a line\nand another")
    except TypeError as error:
        return error


def test_twice_is_set_aside_once_is_not(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    Crashes(path, "1").happened(raised(HOSTING, "job-1"))
    assert not Crashes(path, "1").set_aside()
    Crashes(path, "1").happened(raised(PLANNING, "job-1"))
    assert not Crashes(path, "1").set_aside()
    Crashes(path, "1").happened(raised(HOSTING, "job-1"))
    found = Crashes(path, "1").set_aside()
    assert list(found.why) == ["hosting job-1"]
    assert found.of(HOSTING, "job-1") == "and another"
    assert not Crashes(path, "2").set_aside(), "another version may do better"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_no_text_is_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    for _ in range(2):
        try:
            with at(HOSTING, "job-1"):
                raise OSError("no such file: \udcff")
        except OSError as error:
            Crashes(path, "1").happened(error)
    assert Crashes(path, "1").set_aside().of(HOSTING, "job-1") == "OSError: no such file: \\udcff"


def test_what_would_happen_at_something_else_is_not_counted(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path / "crashes.json", "1")
    for _ in range(3):
        crashes.happened(AssertionError("impossible"))
    assert not crashes.path.exists()


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"[]", b'{"version": "1", "crashes": 3}'])
def test_a_damaged_file_is_as_none_and_is_replaced(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "crashes.json"
    path.write_bytes(data)
    assert not Crashes(path, "1").set_aside()
    for _ in range(2):
        Crashes(path, "1").happened(raised(HOSTING, "job-1"))
    assert Crashes(path, "1").set_aside()


def test_many_are_forgotten_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    for number in range(100):
        for _ in range(2):
            Crashes(path, "1").happened(raised(HOSTING, f"job-{number}"))
    found = Crashes(path, "1").set_aside().why
    assert len(found) == 64
    assert "hosting job-99" in found


@contextmanager
def life(home: Path, number: int) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon to which every job is odd; gone at the end."""
    with (home.parent / f"log{number}").open("wb") as log:
        daemon = subprocess.Popen([sys.executable, "-c", RUN, str(home)], stdout=log, stderr=log)
    try:
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()


def status(home: Path) -> dict[str, Any]:
    """What the node says; nothing while it says nothing."""
    try:
        seen: dict[str, Any] = dmi.connect(home).status()
    except DmiError:
        return {}
    return seen


@pytest.mark.processes
def test_a_job_that_ends_the_daemon_is_set_aside_at_its_third_start(tmp_path: Path) -> None:
    script, home = tmp_path / "train.py", tmp_path / "home"
    script.write_text("import dmi; dmi.init(seed=0)")
    with life(home, 1) as daemon:
        until(lambda: status(home).get("quorum"), 30, "it is up")
        with suppress(DmiError):  # it may end before it answers
            dmi.connect(home).submit(script)
        assert daemon.wait(30) == CRASHED
    with life(home, 2) as daemon:
        assert daemon.wait(30) == CRASHED
    with life(home, 3) as daemon:
        until(lambda: "failed" in [each["state"] for each in status(home).get("jobs", [])], 30, "it is given up")
        seen = status(home)
        (job,) = (each["id"] for each in seen["jobs"])
        assert seen["set_aside"] == {f"hosting {job}": "TypeError: nobody thought of such a job"}
        assert "nobody thought of such a job" in seen["jobs"][0]["reason"]
        shown = command("status", home=home, check=False).stdout
        assert f"hosting {job}" in shown
        assert "crashes.json" in shown, "the way back"
        daemon.terminate()
        assert daemon.wait(30) == 0
    assert "Traceback" in (tmp_path / "log1").read_text()
