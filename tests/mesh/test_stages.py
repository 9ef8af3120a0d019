"""Models that are larger than a replica may hold: cut into stages, served as one, and nothing lost with a stage."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmi
from dmi.errors import RefusedError, UsageError
from dmi.mesh import Mesh
from tests.mesh.load import WIDTH, Load, expected, write_model
from tests.mesh.local import LocalMesh, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

_LAYER = 1 << 20
_MOST = _LAYER + 4096


def stages(mesh: Mesh) -> dict[int, dict[str, Any]]:
    """The replica of each stage."""
    return {role["shards"][0]["shard"]: role for role in mesh.roles() if role["role"] == "replica"}


def kill_under_load(mesh: Mesh, load: Load, pid: int) -> None:
    """It is replaced, and answers come from then on, too."""
    until(lambda: load.done > 20, 30, "it answers")
    os.kill(pid, signal.SIGKILL)

    def goes_on() -> bool:
        there = stages(mesh)
        return len(there) == 3 and all(role["pid"] not in {None, pid} for role in there.values())

    until(goes_on, 30, "another process has the stage")
    done = load.done
    until(lambda: load.done > done + 50 or bool(load.failed), 30, "answers come again")


def numbers(mesh: Mesh, folder: Path, version: int = 1) -> None:
    """Add a version that is cut into three stages."""
    mesh.models.add("staged", write_model(folder / f"{version}.pt2", version, layers=3, layer_bytes=_LAYER))


@pytest.fixture(scope="module")
def mesh(five: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    found = dmi.connect(five.node(0))
    numbers(found, tmp_path_factory.mktemp("model"))
    yield found
    until(lambda: not found.roles(), 20, "all processes end")
    found.models.remove("staged")


def test_stages_serve_as_one_and_one_that_is_killed_is_replaced(mesh: Mesh) -> None:
    with pytest.raises(UsageError, match="may be held"):
        mesh.serve("staged", memory_per_replica=1000)
    deployment = mesh.serve("staged", memory_per_replica=_MOST, replicas=1, gateways=1)
    (url,) = deployment.ready()
    there = stages(mesh)
    assert sorted(there) == [0, 1, 2]
    assert len({role["node"] for role in there.values()}) == 3, "each has a node of its own"
    assert mesh.models.show("staged")["cuts"] == [[_LAYER + extra for extra in (0, 0, 52)]]
    values = np.arange(70 * WIDTH, dtype=np.float32).reshape(70, WIDTH) % 1000
    wanted = [expected([int(value) for value in row], 1) for row in values]
    assert mesh.predict("staged", values).tolist() == wanted, "cut into batches, and put together"
    with pytest.raises(RefusedError, match=r"inputs\[0\].shape"):
        mesh.predict("staged", values[:, :2])
    load = Load(url, "staged", connections=6, pause_s=0.002)
    try:
        kill_under_load(mesh, load, there[1]["pid"])
    finally:
        load.end()
        mesh.unserve("staged")
    assert not load.failed, load.failed[:3]
    assert not load.wrong, load.wrong[:3]


def infer_both(mesh: Mesh, folder: Path, meanwhile: Callable[[Any], None]) -> None:
    """The same inputs with the whole model and with its stages: the same bytes."""
    values = np.random.default_rng(0).integers(0, 1000, (400, WIDTH)).astype(np.float32)
    np.save(folder / "in.npy", values)
    config = {"model": "staged", "input": {"kind": "npy", "path": str(folder / "in.npy")}, "batch_size": 4}
    staged = mesh.infer(config | {"memory_per_replica": _MOST}, out=folder / "staged")
    meanwhile(staged)
    staged.write()
    mesh.infer(config, out=folder / "whole").write()
    assert (folder / "staged" / "results.jsonl").read_bytes() == (folder / "whole" / "results.jsonl").read_bytes()
    assert mesh.models.show("staged")["cuts"][0][0] == _LAYER, "it was cut"


@pytest.mark.deep
def test_a_batch_inference_in_stages_writes_what_the_whole_writes(mesh: Mesh, tmp_path: Path) -> None:
    infer_both(mesh, tmp_path, lambda _: None)


@pytest.mark.deep
def test_a_batch_inference_in_stages_outlives_a_node(make_mesh: Callable[[int], LocalMesh], tmp_path: Path) -> None:
    local = make_mesh(3)
    mesh = dmi.connect(local.node(0))
    numbers(mesh, tmp_path)

    def kill(staged: Any) -> None:
        until(lambda: (staged.status()["step"] or 0) >= 40, 60, "some inputs are computed")
        local.kill(2)

    infer_both(mesh, tmp_path, kill)


@pytest.mark.deep
def test_a_model_in_stages_outlives_each_of_them_and_a_node(
    make_mesh: Callable[[int], LocalMesh], tmp_path: Path
) -> None:
    local = make_mesh(4)
    mesh = dmi.connect(local.node(0))
    numbers(mesh, tmp_path)
    deployment = mesh.serve("staged", memory_per_replica=_MOST, replicas=1, gateways=4)
    deployment.ready()
    until(lambda: len(deployment.urls()) == 4, 20, "a gateway on each node")
    (empty,) = {"n0", "n1", "n2", "n3"} - {role["node"] for role in stages(mesh).values()}
    url = next(url for url in deployment.urls() if url.startswith(f"http://{_host(local, empty)}:"))
    load = Load(url, "staged", connections=6, pause_s=0.002)
    try:
        for stage in (1, 2, 0):
            kill_under_load(mesh, load, stages(mesh)[stage]["pid"])
        numbers(mesh, tmp_path, version=2)
        mesh.models.promote("staged")
        until(lambda: load.versions[2] > 50, 30, "the other version answers")
        node = next(role["node"] for role in stages(mesh).values() if role["node"] != empty)  # which the load asks
        mesh = dmi.connect(local.node(int(empty[1:])))
        local.kill(int(node[1:]))
        done = load.done
        until(lambda: load.done > done + 200 or bool(load.failed), 40, "answers come without the node")
    finally:
        load.end()
    assert not load.failed, load.failed[:3]
    assert not load.wrong, load.wrong[:3]


def _host(local: LocalMesh, name: str) -> str:
    address = next(each["address"] for each in local.status(0)["members"] if each["name"] == name)
    return str(address).rpartition(":")[0]


def test_the_command_cuts_and_says_what_it_did(mesh: Mesh, five: LocalMesh) -> None:
    home = five.node(1)
    made = command("models", "cut", "staged:1", "--memory", "2.2MB", home=home).stdout
    assert "cut  into 2 stages of " in made
    refused = command("models", "cut", "staged:1", "--memory", "lots", home=home, check=False)
    assert refused.returncode == 2
    assert "a number of bytes must be a size such as 50GB or 800MB, not 'lots'" in refused.stderr
