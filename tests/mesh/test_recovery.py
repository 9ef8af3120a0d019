"""Whatever is killed, a training goes on and ends with the bits of a plain run: at the very step while somebody has each
shard, from the last checkpoint when nobody has."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import dmi
from dmi.mesh import Mesh
from tests.mesh.local import ROOT, LocalMesh, command, submit, until
from tests.mesh.test_same_bits import plain, sha256

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

MakeMesh = Callable[[int], LocalMesh]
STEADY = Path(__file__).parent / "scripts" / "steady.py"
EPOCHS = "18"
STEPS = 18 * 8
LEAVES = 8


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain(tmp_path_factory.mktemp("plain") / "plain.safetensors", str(STEADY.relative_to(ROOT)), EPOCHS)


def seen(node: Mesh, identity: str) -> dict[str, Any]:
    found: dict[str, Any] = next((j for j in node.status()["jobs"] if j["id"] == identity), {})
    return found


def is_under_way(node: Mesh, identity: str) -> bool:
    """Beyond some checkpoints, and with a backup of every shard."""
    copies = [shard for role in roles(node, identity) for shard in role["shards"]]
    backed = {shard["shard"] for shard in copies if not shard["primary"]}
    return int(seen(node, identity).get("step") or 0) >= 20 and len(backed) == 3


def roles(node: Mesh, identity: str) -> list[dict[str, Any]]:
    return [role for role in node.roles() if role["job"] == identity]


def has_shifted(node: Mesh, identity: str, generation: int) -> bool:
    job = seen(node, identity)
    return job["generation"] > generation and job["state"] in {"running", "succeeded"}


def processes(node: Mesh, identity: str) -> set[int]:
    return {role["pid"] for role in roles(node, identity)}


def has_joined(node: Mesh, identity: str, name: str) -> bool:
    return any(role["node"] == name and role["role"] == "worker" for role in roles(node, identity))


def ends_with(mesh: LocalMesh, identity: str, expected: str, path: Path) -> dict[str, Any]:
    ended: dict[str, Any] = dmi.connect(mesh.node(0)).job(identity).wait()
    assert (ended["state"], ended["step"]) == ("succeeded", STEPS)
    command("export", identity, path, home=mesh.node(1))
    assert sha256(path) == expected
    return ended


def ledgers(mesh: LocalMesh, identity: str, generation: str = "*") -> list[tuple[int, int]]:
    """Every leaf that was computed, once for each time."""
    files = mesh.home.glob(f"n*/jobs/{identity}/{generation}/worker-*/ledger.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(line["step"], line["leaf"]) for line in lines]


@pytest.mark.parametrize(
    "what", [pytest.param("worker", marks=pytest.mark.deep), pytest.param("server", marks=pytest.mark.deep), "node"]
)
def test_survivors_take_over_at_the_very_step(make_mesh: MakeMesh, expected: str, what: str, tmp_path: Path) -> None:
    mesh = make_mesh(3)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, STEADY, "--", EPOCHS, tmp_path)
    until(partial(is_under_way, node, identity), 90, "the job has backups and checkpoints")
    before, generation = processes(node, identity), seen(node, identity)["generation"]
    if what == "node":
        gone = {role["pid"] for role in roles(node, identity) if role["node"] == "n2"}
        mesh.kill(2)
    else:
        gone = {next(role["pid"] for role in roles(node, identity) if role["role"] == what)}
        os.kill(min(gone), signal.SIGKILL)
    until(partial(has_shifted, node, identity, generation), 20, "the others take over")
    assert before - gone <= processes(node, identity), "nobody else was started again"
    if what == "node":
        told = command("logs", identity, home=mesh.node(0)).stderr
        assert told == "n2: [n2 is dead: lines that processes printed there are missing here until it is back]\n"
        mesh.start(2)
        until(partial(has_joined, node, identity, "n2"), 60, "n2 takes part again")
    (tmp_path / "go on").touch()
    ends_with(mesh, identity, expected, tmp_path / "mesh.safetensors")
    assert not command("logs", identity, home=mesh.node(0)).stderr
    computed = ledgers(mesh, identity)
    assert set(computed) == {(step, leaf) for step in range(STEPS) for leaf in range(LEAVES)}
    assert len(computed) <= STEPS * LEAVES + 8 * LEAVES, "only steps in flight were computed again"


def is_up(mesh: LocalMesh) -> bool:
    return mesh.node(0).joinpath("control.sock").exists()


@pytest.mark.deep
def test_a_whole_mesh_goes_on_from_its_last_checkpoint(make_mesh: MakeMesh, expected: str, tmp_path: Path) -> None:
    mesh = make_mesh(3)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, STEADY, "--", EPOCHS)
    until(partial(is_under_way, node, identity), 90, "the job has backups and checkpoints")
    generation = seen(node, identity)["generation"]
    for index in range(mesh.size):
        mesh.kill(index)
    for index in range(mesh.size):
        mesh.start(index)
    until(partial(is_up, mesh), 20, "n0 serves")
    until(lambda: command("status", home=mesh.node(0), check=False).returncode == 0, 20, "there is a quorum")
    until(partial(has_shifted, dmi.connect(mesh.node(0)), identity, generation), 60, "the job is placed again")
    ends_with(mesh, identity, expected, tmp_path / "mesh.safetensors")
    later = [int(path.name) for path in mesh.home.glob(f"n0/jobs/{identity}/*") if path.name.isdigit()]
    first = min(step for step, _ in ledgers(mesh, identity, str(max(later))))
    assert first >= 10, "it did not begin again at its beginning"
