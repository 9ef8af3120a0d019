"""A small disk that is filled up while its node coordinates: it says so, steps aside, and is back when there is space."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmi
from dmi.mesh import Mesh
from dmi_protocol.reasons import DiskFree, DiskFull
from dmi_protocol.sentences import sentence
from tests.mesh.local import ROOT, LocalMesh, command, submit, until

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root and mount(8)"),
]

LINEAR = ROOT / "tests" / "mesh" / "scripts" / "linear.py"
SAID = sentence(DiskFull("n0", "database or disk is full"))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """Four nodes; the home of n0 is a disk of a few MiB."""
    made = LocalMesh(tmp_path / "mesh", 4)
    small = made.node(0)
    small.mkdir(parents=True, mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", small],
        capture_output=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        made.up()
        yield made
    finally:
        (small / "filler").unlink(missing_ok=True)
        made.close()
        subprocess.run(["umount", "--lazy", small], check=True, timeout=20)


def fill(home: Path) -> None:
    """Leave no byte, whatever the daemon has open."""
    with (home / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def keep_deciding(node: Mesh) -> bool:
    """Have something agreed on. The file of n0's journal has room for a while."""
    node.invite()
    return True


def voters(node: Mesh) -> set[str]:
    return {member["name"] for member in node.members() if member["voter"]}


def trouble(node: Mesh) -> str | None:
    found: str | None = next(member["trouble"] for member in node.members() if member["name"] == "n0")
    return found


@pytest.mark.deep
def test_a_voter_with_a_full_disk_steps_aside_and_comes_back_by_itself(mesh: LocalMesh) -> None:
    full, other = dmi.connect(mesh.node(0)), dmi.connect(mesh.node(1))
    until(lambda: len(voters(full)) == 3, 20, "three voters")
    assert "n0" in voters(full)
    pid = mesh.pid(0)
    fill(mesh.node(0))
    until(lambda: keep_deciding(other) and trouble(other) == SAID, 60, "n1 hears of it")

    until(lambda: other.status()["coordinator"] in {"n1", "n2", "n3"}, 10, "another one coordinates")
    until(lambda: "n0" not in voters(other) and len(voters(other)) == 3, 20, "n0 is replaced as a voter")
    mine = command("status", home=mesh.node(0), check=False)
    assert mine.returncode == 1
    assert SAID in mine.stdout
    assert command("status", home=mesh.node(1)).stdout.splitlines().count(SAID) == 1
    assert submit(mesh, LINEAR, "--wait", via=1)
    assert {role["node"] for role in other.roles()} == set()

    (mesh.node(0) / "filler").unlink()
    until(lambda: full.status()["quorum"] and trouble(other) is None, 20, "n0 is back")
    until(lambda: full.jobs() and full.jobs()[0]["state"] == "succeeded", 10, "n0 has heard what was decided")
    assert mesh.pid(0) == pid
    log = (mesh.node(0) / "daemon.log").read_text()
    assert log.count(SAID) == log.count(sentence(DiskFree("n0"))) == 1
