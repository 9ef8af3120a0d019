"""More is lost at once than anybody should lose, and hosts leave one after the other: the job ends with the plain run's bits,
and what it has made stays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import dmi
from dmi.mesh import Mesh
from tests.hosts import faults
from tests.mesh.local import ROOT, LocalMesh, command, submit, until
from tests.mesh.test_recovery import is_under_way, roles, seen
from tests.mesh.test_same_bits import plain, sha256

pytestmark = [pytest.mark.mesh, pytest.mark.deep, pytest.mark.timeout(400)]

MakeMesh = Callable[[int], LocalMesh]
STEADY = Path(__file__).parent / "scripts" / "steady.py"
DIGITS = ROOT / "examples" / "digits.py"
EPOCHS = "45"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain(tmp_path_factory.mktemp("plain") / "steady.safetensors", str(STEADY.relative_to(ROOT)), EPOCHS)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain(tmp_path_factory.mktemp("plain") / "digits.safetensors", str(DIGITS), "--epochs", "2")


def ends_with(mesh: LocalMesh, via: int, identity: str, expected: str, path: Path) -> None:
    ended = dmi.connect(mesh.node(via)).job(identity).wait()
    assert ended["state"] == "succeeded", ended
    command("export", identity, path, home=mesh.node(via))
    assert sha256(path) == expected


def test_all_workers_at_once_are_one_crash(make_mesh: MakeMesh, steady: str, tmp_path: Path) -> None:
    mesh = make_mesh(5)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, STEADY, "--", EPOCHS)
    until(lambda: int(seen(node, identity).get("step") or 0) >= 10, 120, "the job trains")
    victims = [role["pid"] for role in faults.roles(node, identity, "worker")]
    assert len(victims) == 5
    for pid in victims:
        faults.kill(pid)
    ends_with(mesh, 0, identity, steady, tmp_path / "mesh.safetensors")


def test_a_job_whose_files_are_away_waits_for_whoever_has_them(
    make_mesh: MakeMesh, digits: str, tmp_path: Path
) -> None:
    mesh = make_mesh(5)
    third = dmi.connect(mesh.node(2))
    identity = submit(mesh, DIGITS, "--workers", 3, "--", "--epochs", "2", via=0)
    for index in (0, 1):  # the node that was asked, and the first other one
        mesh.kill(index)
    until(lambda: _dead(third) == {"n0", "n1"}, 20, "both are known to be dead")
    assert seen(third, identity)["state"] not in {"failed", "cancelled"}
    for index in (0, 1):
        mesh.start(index)
    ends_with(mesh, 2, identity, digits, tmp_path / "mesh.safetensors")


def _dead(node: Mesh) -> set[str]:
    return {member["name"] for member in node.status()["members"] if member["state"] == "dead"}


def test_two_nodes_leave_in_turn_while_a_job_trains(make_mesh: MakeMesh, steady: str, tmp_path: Path) -> None:
    mesh = make_mesh(5)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, STEADY, "--workers", 3, "--servers", 3, "--", EPOCHS)
    until(partial(is_under_way, node, identity), 120, "the job has backups")
    playing = sorted({role["node"] for role in roles(node, identity)} - {"n0"})
    for name in playing[-2:]:
        left = command("leave", home=mesh.node(int(name[1:])), check=False)
        assert left.returncode == 0, left.stderr
    assert len(node.status()["members"]) == 3
    ends_with(mesh, 0, identity, steady, tmp_path / "mesh.safetensors")


def test_a_result_that_one_node_alone_has_outlives_it(make_mesh: MakeMesh, digits: str, tmp_path: Path) -> None:
    mesh = make_mesh(1)
    identity = submit(mesh, DIGITS, "--", "--epochs", "2")
    assert dmi.connect(mesh.node(0)).job(identity).wait()["state"] == "succeeded"
    new = mesh.add()
    until(lambda: faults.is_answering(mesh, new), 30, "a second node is in")
    command("leave", home=mesh.node(0))
    command("export", identity, tmp_path / "mesh.safetensors", home=mesh.node(new))
    assert sha256(tmp_path / "mesh.safetensors") == digits
