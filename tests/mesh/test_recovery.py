"""Whatever is killed, a training goes on from its last checkpoint and ends with the bits of a plain run."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import dmi
from dmi.mesh import Mesh
from tests.mesh.local import ROOT, LocalMesh, command, submit, until
from tests.mesh.test_same_bits import plain, sha256

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

MakeMesh = Callable[[int], LocalMesh]
STEADY = Path(__file__).parent / "scripts" / "steady.py"
EPOCHS = "60"
STEPS = 60 * 8


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain(tmp_path_factory.mktemp("plain") / "plain.safetensors", str(STEADY.relative_to(ROOT)), EPOCHS)


def has_checkpoint(node: Mesh, identity: str) -> bool:
    """Only what is not from the first steps tells whether it was used."""
    return any(j["id"] == identity and (j["step"] or 0) >= 30 for j in node.status()["jobs"])


def is_further(node: Mesh, identity: str) -> bool:
    return any(j["id"] == identity and j["generation"] > 1 for j in node.status()["jobs"])


def process(node: Mesh, identity: str, role: str) -> int:
    pid: int = next(r["pid"] for r in node.roles() if r["job"] == identity and r["role"] == role and r["index"] == 1)
    return pid


def kill(mesh: LocalMesh, node: Mesh, identity: str, what: str) -> None:
    if what == "node":
        mesh.kill(2)
    elif what == "mesh":
        for index in range(mesh.size):
            mesh.kill(index)
        for index in range(mesh.size):
            mesh.start(index)
    else:
        os.kill(process(node, identity, what), signal.SIGKILL)


@pytest.mark.parametrize("what", ["worker", "server", "node", "mesh"])
def test_what_is_killed_changes_no_bit(make_mesh: MakeMesh, expected: str, what: str, tmp_path: Path) -> None:
    mesh = make_mesh(3)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, STEADY, "--", EPOCHS)
    until(partial(has_checkpoint, node, identity), 90, "the job has gone beyond some checkpoints")
    kill(mesh, node, identity, what)
    until(lambda: mesh.node(0).joinpath("control.sock").exists(), 20, "n0 serves")
    until(lambda: command("status", home=mesh.node(0), check=False).returncode == 0, 20, "there is a quorum")
    until(lambda: is_further(dmi.connect(mesh.node(0)), identity), 60, "the job is placed again")
    ended = dmi.connect(mesh.node(0)).job(identity).wait()
    assert (ended["state"], ended["step"]) == ("succeeded", STEPS)
    command("export", identity, tmp_path / "mesh.safetensors", home=mesh.node(1))
    assert sha256(tmp_path / "mesh.safetensors") == expected
    assert first_step(mesh, identity, ended["generation"]) >= 10, "it did not begin again at its beginning"


def first_step(mesh: LocalMesh, identity: str, generation: int) -> int:
    """The first step of which leaves were computed in a generation."""
    files = list(mesh.home.glob(f"n*/jobs/{identity}/{generation}/worker-*/ledger.jsonl"))
    steps: list[int] = [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]
    return min(steps)
