"""Models that are larger than a replica may hold: cut into stages, served as one, and nothing lost with a stage."""

import os
import signal
from collections.abc import Callable
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
    assert not load.failed
    os.kill(pid, signal.SIGKILL)
    done = load.done

    def goes_on() -> bool:
        there = stages(mesh)
        return len(there) == 3 and all(role["pid"] not in {None, pid} for role in there.values())

    until(goes_on, 30, "another process has the stage")
    until(lambda: load.done > done + 50 or bool(load.failed), 30, "answers come again")


def test_a_model_in_stages_outlives_each_of_them(make_mesh: Callable[[int], LocalMesh], tmp_path: Path) -> None:
    local = make_mesh(4)
    mesh = dmi.connect(local.node(0))
    mesh.models.add("numbers", write_model(tmp_path / "one.pt2", 1, layers=3, layer_bytes=_LAYER))
    with pytest.raises(UsageError, match="may be held"):
        mesh.serve("numbers", memory_per_replica=1000)
    deployment = mesh.serve("numbers", memory_per_replica=_MOST, replicas=1, gateways=4)
    urls = deployment.ready()
    there = stages(mesh)
    assert sorted(there) == [0, 1, 2]
    assert len({role["node"] for role in there.values()}) == 3, "each has a node of its own"
    assert mesh.models.show("numbers")["cuts"] == [[_LAYER + extra for extra in (0, 0, 52)]]
    until(lambda: len(deployment.urls()) == 4, 20, "a gateway on each node")

    values = np.arange(70 * WIDTH, dtype=np.float32).reshape(70, WIDTH) % 1000
    wanted = [expected([int(value) for value in row], 1) for row in values]
    assert mesh.predict("numbers", values).tolist() == wanted, "cut into batches, and put together"
    with pytest.raises(RefusedError, match=r"inputs\[0\].shape"):
        mesh.predict("numbers", values[:, :2])

    (empty,) = {"n0", "n1", "n2", "n3"} - {role["node"] for role in there.values()}
    url = next(url for url in urls if url.startswith(f"http://{_host(local, empty)}:"))
    load = Load(url, "numbers", connections=6, pause_s=0.002)
    try:
        for stage in (1, 2, 0):
            kill_under_load(mesh, load, stages(mesh)[stage]["pid"])
        second = write_model(tmp_path / "two.pt2", 2, layers=3, layer_bytes=_LAYER)
        mesh.models.add("numbers", second)
        mesh.models.promote("numbers")
        until(lambda: load.versions[2] > 50, 30, "the other version answers")
        node = stages(mesh)[1]["node"]
        if node == empty:  # which the load asks
            node = stages(mesh)[2]["node"]
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


def test_the_command_cuts_and_says_what_it_did(five: LocalMesh, tmp_path: Path) -> None:
    home = five.node(1)
    path = write_model(tmp_path / "wide.pt2", 1, layers=4, layer_bytes=_LAYER)
    command("models", "add", "wide", str(path), home=home)
    assert (
        "cut  into 2 stages of 2.1 MB, 2.1 MB"
        in command("models", "cut", "wide", "--memory", "2.2MB", home=home).stdout
    )
    refused = command("models", "cut", "wide", "--memory", "lots", home=home, check=False)
    assert refused.returncode == 2
    assert "a number of bytes must be a size such as 50GB or 800MB, not 'lots'" in refused.stderr
    command("models", "rm", "wide", home=home)
