"""``up`` and ``down`` with real nodes: what ends leaves nothing, what is not ours is not touched."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.mesh.local import BIN, clean_environment, command, until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


def daemons_of(root: Path) -> list[psutil.Process]:
    """Every process that was started for a home under ``root``."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "run" in words and any(word.startswith(f"{root}{os.sep}") for word in words):
            found.append(process)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A home for a mesh. The test fails when something of it outlives ``down``."""
    path = tmp_path / "mesh"
    yield path
    command("down", "--home", path, home=path, check=False)
    left = daemons_of(path)
    for process in left:
        process.kill()
    assert not left


def status(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("status", "--json", home=root, check=False).stdout)
    return found


def test_a_mesh_that_was_ended_comes_back_as_it_was(root: Path) -> None:
    up = ("up", "--nodes", "2", "--detach", "--home", root)
    command(*up, home=root)
    before = status(root)
    again = command(*up, home=root, check=False)
    assert again.returncode == 1
    assert "already up" in again.stderr
    ended = command("down", "--home", root, "--json", home=root)
    assert json.loads(ended.stdout) == {"ended": ["n0", "n1"]}
    assert daemons_of(root) == []
    assert command("status", home=root, check=False).returncode == 3
    command(*up, home=root)
    after = status(root)
    assert after["mesh"] == before["mesh"]
    for key in ("id", "name", "address"):
        assert [member[key] for member in after["members"]] == [member[key] for member in before["members"]]


def test_a_mesh_that_does_not_come_up_leaves_nothing_running(root: Path) -> None:
    (root / "n1").mkdir(parents=True)
    (root / "n1" / "config.toml").write_text("liste = 1\n")
    said = command("up", "--nodes", "2", "--detach", "--home", root, home=root, check=False)
    assert said.returncode == 1
    assert said.stderr.strip() == "n1 ended with code 78: see its daemon.log"
    assert daemons_of(root) == []


def test_fewer_nodes_than_a_quorum_are_refused_at_once(root: Path) -> None:
    command("up", "--nodes", "3", "--detach", "--home", root, home=root)
    until(lambda: all(member["voter"] for member in status(root)["members"]), 20, "all vote")
    command("down", "--home", root, home=root)
    said = command("up", "--nodes", "1", "--detach", "--home", root, home=root, seconds=15, check=False)
    assert said.returncode == 1
    assert said.stderr == (
        f"the mesh under {root} has 3 voters and decides nothing with 1 of them: it needs 2; "
        f"`dmi-node up --nodes 3 --home {root}` starts them all\n"
    )
    assert daemons_of(root) == []
    command("up", "--nodes", "2", "--detach", "--home", root, home=root)
    assert status(root)["quorum"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_foreground_a_signal_is_down(root: Path, number: int) -> None:
    """Even when whoever started it had it ignore Ctrl-C, as a script does with what it starts by `&`."""
    with subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" INT; exec "$0" up --nodes 1 --home "$1"', BIN / "dmi-node", root],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "1 nodes are up" in process.stdout.readline()
        until(lambda: status(root)["quorum"], 10, "the node answers")
        process.send_signal(number)
        assert process.wait(30) == 0
    assert daemons_of(root) == []


def test_a_node_whose_parent_does_not_ask_after_it_is_not_waited_for(root: Path) -> None:
    command("up", "--nodes", "1", "--detach", "--home", root, home=root)
    command("down", "--home", root, home=root)
    child = subprocess.Popen([BIN / "dmi-node", "run", "--home", root / "n0"], env=clean_environment())
    try:
        until(lambda: (root / "n0" / "control.sock").exists(), 20, "it serves")
        command("down", "--home", root, home=root, seconds=8)
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    finally:
        child.kill()
        child.wait()


def test_down_without_a_mesh_is_fine(tmp_path: Path) -> None:
    said = command("down", "--home", tmp_path, home=tmp_path)
    assert "no node runs" in said.stdout


def test_a_pid_that_now_belongs_to_somebody_else_is_not_signalled(tmp_path: Path) -> None:
    """The pid file outlives a crash, and the system gives the number to another process."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "n0").mkdir()
        (tmp_path / "n0" / "pid").write_text(f"{stranger.pid}\n")
        said = command("down", "--home", tmp_path, "--json", home=tmp_path)
        assert json.loads(said.stdout) == {"ended": []}
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.deep
def test_a_node_that_does_not_end_in_time_is_killed(root: Path) -> None:
    command("up", "--nodes", "1", "--detach", "--home", root, home=root)
    [daemon] = daemons_of(root)
    daemon.suspend()
    command("down", "--home", root, home=root)
    assert daemons_of(root) == []
