"""Many inputs, one result for each, the bytes of a plain loop: whoever computed them, and whatever was killed meanwhile."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from torch import nn

import dmi
from tests.mesh.local import ROOT, LocalMesh, clean_environment, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

MakeMesh = Callable[[int], LocalMesh]


def images(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 255, (80, 96, 3), dtype=np.uint8)).save(folder / f"{number:05}.png")


def model(path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net.eval(), torch.zeros(2, 3, 32, 32)).save(path)


def configuration(folder: Path, **more: Any) -> Path:
    found: dict[str, Any] = {
        "model": str(folder / "m.pt"),
        "input": {"kind": "images", "path": str(folder / "in")},
        "preprocess": {"resize": 32, "center_crop": 32},
        "batch_size": 8,
    }
    (folder / "c.json").write_text(json.dumps(found | more))
    return folder / "c.json"


def plain(folder: Path, names: str = "in") -> bytes:
    """What a loop in torch writes."""
    out = folder / "plain.jsonl"
    oracle = ROOT / "tests" / "mesh" / "plain_inference.py"
    subprocess.run([sys.executable, oracle, folder / "m.pt", folder / names, out], check=True, env=clean_environment())
    return out.read_bytes()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_bytes_are_those_of_a_plain_loop_though_the_coordinator_is_killed(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    images(tmp_path / "in", 500)
    model(tmp_path / "m.pt")
    config, out = configuration(tmp_path), tmp_path / "out"
    expected = plain(tmp_path)

    mesh = make_mesh(3)
    with subprocess.Popen(
        [Path(sys.executable).parent / "dmi-node", "infer", config, "--out", out, "--json"],
        env=clean_environment(DMI_HOME=str(mesh.home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command_:
        until(lambda: 0 < (mesh.status(1)["jobs"] or [{"step": 0}])[0]["step"] < 500, 60, "it computes")
        coordinator = mesh.status(1)["coordinator"]
        mesh.kill(int(coordinator[1:]))
        said, told = command_.communicate(timeout=120)
    assert command_.returncode == 0, told
    assert (out / "results.jsonl").read_bytes() == expected
    manifest = json.loads(said)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert (manifest["inputs"], manifest["failed"]) == (500, 0)
    assert manifest["machine"]["torch threads"] == "1"
    assert sum(slice_["inputs"] for slice_ in manifest["slices"]) == 500
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "results.jsonl"]

    alive = next(index for index in range(3) if f"n{index}" != coordinator)
    again = command("infer", config, "--out", out, home=mesh.node(alive), check=False)
    assert (again.returncode, again.stderr.strip()) == (
        1,
        f"{out} is there already: name another --out, or go on with what began it: --resume",
    )


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_bad_picture_is_a_row_and_its_neighbours_are_as_they_were(make_mesh: MakeMesh, tmp_path: Path) -> None:
    images(tmp_path / "in", 100)
    model(tmp_path / "m.pt")
    config, expected, mesh = configuration(tmp_path), plain(tmp_path), make_mesh(2)
    (tmp_path / "in" / "00003.png").write_bytes(b"no picture")
    other = command("infer", config, "--out", tmp_path / "bad", "--strict", home=mesh.node(1), check=False)
    assert other.returncode == 1
    assert "; 1 failed (1 no image that can be read): " in other.stdout
    found, good = rows(tmp_path / "bad"), [json.loads(line) for line in expected.splitlines()]
    assert found.pop(3) == {"id": "00003.png", "error": "no image that can be read"}
    del good[3]
    assert found == good, "its neighbours are as they were"


def is_back(mesh: LocalMesh) -> bool:
    """Is there a coordinator again?"""
    done = command("status", "--json", home=mesh.node(0), check=False)
    return done.returncode == 0 and json.loads(done.stdout)["coordinator"] is not None


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_job_goes_on_after_a_stop_of_the_whole_mesh(make_mesh: MakeMesh, tmp_path: Path) -> None:
    images(tmp_path / "in", 3_000)
    model(tmp_path / "m.pt")
    config, out = configuration(tmp_path), tmp_path / "out"
    expected = plain(tmp_path)
    mesh = make_mesh(4)
    started = dmi.connect(mesh.node(0)).infer(config, out)
    until(lambda: 0 < mesh.status(1)["jobs"][0]["step"] < 3_000, 60, "it computes")
    for index in range(4):
        mesh.kill(index)
    for index in range(4):
        mesh.start(index)
    until(lambda: is_back(mesh), 60, "the mesh is back")
    done = command("infer", config, "--out", out, "--resume", "--json", home=mesh.node(3))
    assert json.loads(done.stdout)["job"] == started.id
    assert (out / "results.jsonl").read_bytes() == expected


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_list_at_an_address_gives_a_table(make_mesh: MakeMesh, tmp_path: Path) -> None:
    images(tmp_path / "in", 50)
    model(tmp_path / "m.pt")
    expected, mesh = [json.loads(line) for line in plain(tmp_path).splitlines()], make_mesh(2)
    (tmp_path / "list.txt").write_text("".join(f"in/{row['id']}\n" for row in reversed(expected)))
    given = {"kind": "images", "path": f"file://{tmp_path}/list.txt"}
    config = configuration(tmp_path, input=given, batch_size=1, output={"kind": "parquet"})
    tried = json.loads(command("infer", config, "--dry-run", "--json", home=mesh.node(1)).stdout)
    assert (tried["inputs"], tried["batches"], [row["id"] for row in tried["rows"]]) == (50, 50, ["in/00049.png"])
    said = command("infer", config, "--out", tmp_path / "out", home=mesh.node(1)).stdout
    assert said.endswith(f"{tmp_path}/out/results.parquet\n")
    found = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [row["id"] for row in found] == [f"in/{row['id']}" for row in reversed(expected)]
    assert [row["category"] for row in found] == [row["category"] for row in reversed(expected)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "results.parquet"]


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_inputs_that_only_one_host_has_travel(five: LocalMesh, tmp_path: Path) -> None:
    images(tmp_path / "in", 200)
    model(tmp_path / "m.pt")
    expected, mesh = plain(tmp_path), five
    given = {"kind": "images", "path": str(tmp_path / "in"), "travels": True}
    config = configuration(tmp_path, input=given)
    job = command(
        "infer", config, "--nodes", 3, "--out", tmp_path / "out", "--detach", home=mesh.node(0)
    ).stdout.strip()
    (tmp_path / "in").rename(tmp_path / "gone")  # nobody can read them where they were
    assert dmi.connect(mesh.node(1)).job(job).wait()["state"] == "succeeded"
    (tmp_path / "gone").rename(tmp_path / "in")
    manifest = json.loads(
        command(
            "infer", config, "--nodes", 3, "--out", tmp_path / "out", "--resume", "--json", home=mesh.node(0)
        ).stdout
    )
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == expected
    assert (manifest["inputs"], manifest["failed"]) == (200, 0)


@pytest.mark.deep
def test_rows_of_a_table_have_the_bytes_of_one_node_on_several(make_mesh: MakeMesh, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((20_000, 4)).astype(np.float32))
    (tmp_path / "net.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(4, 3)\n")
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "w.safetensors")
    mesh = make_mesh(3)
    made = (f"{tmp_path}/net.py:make", "--weights", tmp_path / "w.safetensors")
    command("models", "add", "m", *made, home=mesh.node(0))
    (tmp_path / "net.py").unlink()  # it has travelled
    config = {"model": "m", "input": {"kind": "npy", "path": str(tmp_path / "x.npy")}}
    connected = dmi.connect(mesh.node(1))
    for nodes in (1, 3):
        connected.infer(config, tmp_path / f"out{nodes}", nodes=nodes).write()
    one, three = (tmp_path / f"out{nodes}" / "results.jsonl" for nodes in (1, 3))
    assert one.read_bytes() == three.read_bytes()
    assert [row["id"] for row in rows(three.parent)] == list(range(20_000))
