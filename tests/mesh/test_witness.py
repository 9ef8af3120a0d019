"""Two hosts and a witness: either host may be lost, and the witness computes nothing."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import dmi
from dmi.mesh import Mesh
from tests.mesh.local import BIN, LocalMesh, clean_environment, command, submit, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

MakeMesh = Callable[[int], LocalMesh]
LINEAR = Path(__file__).parent / "scripts" / "linear.py"


def add_witness(mesh: LocalMesh) -> None:
    """As a third node of the mesh, which `down` ends with the others."""
    token = dmi.connect(mesh.node(0)).invite()["token"]
    home = mesh.node(2)
    home.mkdir()
    flags = ["--name", "n2", "--listen", "127.0.1.3:0", "--witness", "--join", token]
    with (home / "daemon.log").open("ab") as log:
        child = subprocess.Popen(
            [BIN / "dmi-node", "run", "--home", home, *flags],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    mesh.adopt(child)


def votes(node: Mesh) -> set[str]:
    return {member["name"] for member in node.status()["members"] if member["voter"]}


@pytest.mark.deep
def test_two_nodes_and_a_witness_survive_the_loss_of_one(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(2)
    add_witness(mesh)
    node = dmi.connect(mesh.node(0))
    until(lambda: votes(node) == {"n0", "n1", "n2"}, 20, "three vote")
    assert {member["name"]: member["witness"] for member in node.members()} == {"n0": False, "n1": False, "n2": True}
    assert "witness" in command("members", home=mesh.node(1)).stdout.splitlines()[3]

    job = submit(mesh, LINEAR, "--wait")
    assert {worker.partition("@")[2] for worker, _ in node.job(job).logs()} <= {"n0", "n1"}
    done = command("submit", LINEAR, "--workers", "3", home=mesh.node(0), check=False)
    assert done.returncode == 1
    assert "the mesh has 2 nodes" in done.stderr

    mesh.kill(0)
    left = [dmi.connect(mesh.node(1)), dmi.connect(mesh.node(2))]
    until(lambda: {each.status()["coordinator"] for each in left} < {"n1", "n2"}, 10, "those left have a coordinator")
    assert all(each.status()["quorum"] for each in left)
    until(lambda: left[0].status()["members"][0]["state"] == "dead", 10, "n0 is dead")
    submit(mesh, LINEAR, "--wait", via=2)
    assert left[0].jobs()[-1]["state"] == "succeeded", "one host and a vote train on"
