"""The example that the system is about: a model of real size trains with all defaults, and survives what small ones do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmi.connection import Connection
from dmi.mesh import Mesh
from tests.hosts import faults
from tests.mesh.local import ROOT, LocalMesh, command, job, submit, until
from tests.mesh.test_same_bits import ENDED, plain, sha256

pytestmark = [pytest.mark.mesh, pytest.mark.deep, pytest.mark.timeout(900)]

SCRIPT = ROOT / "examples" / "alexnet.py"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    return plain(path, str(SCRIPT), "--epochs", "1")


def lose_nothing(mesh: LocalMesh, identity: str) -> None:
    """Undisturbed."""


def lose_a_worker(mesh: LocalMesh, identity: str) -> None:
    (victim, *_) = faults.roles(Mesh(Connection(mesh.node(0))), identity, "worker")
    faults.kill(victim["pid"])


def lose_a_primary(mesh: LocalMesh, identity: str) -> None:
    (victim, *_) = faults.roles(Mesh(Connection(mesh.node(0))), identity, "server")
    faults.kill(victim["pid"])


def lose_a_node(mesh: LocalMesh, identity: str) -> None:
    mesh.kill(2)


@pytest.mark.parametrize("lose", [lose_nothing, lose_a_worker, lose_a_primary, lose_a_node])
def test_alexnet_has_the_bits_of_the_plain_run(
    make_mesh: Callable[[int], LocalMesh], expected: str, lose: Callable[[LocalMesh, str], None], tmp_path: Path
) -> None:
    mesh = make_mesh(3)
    identity = submit(mesh, SCRIPT, "--", "--epochs", "1")
    until(lambda: (job(mesh, identity)["step"] or 0) >= 2, 200, "the second step")
    lose(mesh, identity)
    until(lambda: job(mesh, identity)["state"] in ENDED, 500, "the end")
    assert job(mesh, identity)["state"] == "succeeded", command("why", identity, home=mesh.node(0)).stdout
    command("export", identity, tmp_path / "mesh.safetensors", home=mesh.node(0))
    assert sha256(tmp_path / "mesh.safetensors") == expected
    said = command("logs", identity, home=mesh.node(0)).stdout
    assert "57,023,178 parameters (228 MB)" in said
    if lose is lose_nothing:
        told = [line for n in range(3) for line in (mesh.node(n) / "daemon.log").read_text().splitlines()]
        assert not [line for line in told if "server-" in line or "worker-" in line], "nobody was lost on the way"
