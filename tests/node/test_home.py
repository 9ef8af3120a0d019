"""The files of a node, and the lock that keeps a second daemon out."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dmi_node.home import Home, HomeBusyError, owner_of, private_files, usual_umask
from dmi_protocol.identity import JobId
from dmi_protocol.messages.roles import RoleKey

HOLD = """
import sys
import threading
from pathlib import Path
from dmi_node.home import Home
home = Home(Path(sys.argv[1]))
home.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_only_the_owner_may_look_inside(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    home.make()
    home.make()
    assert [path.stat().st_mode & 0o777 for path in (home.root, home.blobs, home.jobs)] == [0o700] * 3


def test_two_daemons_cannot_share_a_home_and_a_dead_one_holds_none(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(HomeBusyError, match=f"process {other.pid}"):
            Home(tmp_path).lock()
        other.kill()
    home = Home(tmp_path)
    home.lock()
    assert int(home.pid.read_text()) == os.getpid()
    with pytest.raises(HomeBusyError, match=f"process {os.getpid()}"):
        Home(tmp_path).lock()
    assert owner_of(tmp_path) == os.getpid()
    home.unlock()
    assert owner_of(tmp_path) is None
    again = Home(tmp_path)
    again.lock()
    again.unlock()


@pytest.mark.parametrize("job", ["..", "../../etc", "/etc/passwd", "a/b", "", ".", "a\0b", "x" * 300, "ä b"])
def test_a_job_s_name_leads_nowhere_else(tmp_path: Path, job: str) -> None:
    home = Home(tmp_path)
    found = home.role(RoleKey(JobId(job), 1, "worker", 0))
    assert found.resolve().is_relative_to(home.jobs.resolve())
    assert found == home.jobs / found.relative_to(home.jobs).parts[0] / "1" / "worker-0"
    assert len(home.job(JobId(job)).name) <= 128


def test_a_plain_name_is_kept(tmp_path: Path) -> None:
    assert Home(tmp_path).job(JobId("digits-3f2a91")).name == "digits-3f2a91"


def test_what_others_made_for_it_is_private_whatever_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "srv"
    root.mkdir()
    root.chmod(0o755)
    (root / "blobs").mkdir(mode=0o755)
    for path in (root / "state.sqlite", root / "blobs" / "blob", root / "node.key_secret"):
        path.touch()
        path.chmod(0o644)
    before = os.umask(0)
    try:
        with private_files():
            Home(root).make()
            (root / "new").touch()
            assert usual_umask() == 0
        assert usual_umask() is None
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in (root, root / "blobs", root / "jobs")] == [0o700] * 3
    files = {path.name: path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_file()}
    assert files == {"state.sqlite": 0o600, "blob": 0o600, "new": 0o600, "node.key_secret": 0o644}, "the key is refused"


def test_a_question_keeps_no_daemon_out(tmp_path: Path) -> None:
    """Some ask all the time whether one runs."""
    Home(tmp_path).make()
    (tmp_path / "pid").write_text("1\n")
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            assert owner_of(tmp_path) in {None, 1, os.getpid()}

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(50):
            home = Home(tmp_path)
            home.lock()
            home.unlock()
    finally:
        over.set()
        for thread in asking:
            thread.join()
