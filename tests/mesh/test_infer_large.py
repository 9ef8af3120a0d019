"""Ten thousand images and a table of a million rows: the same bytes whoever is killed, in memory that does not grow."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import nn

import dmi
from tests.mesh.local import LocalMesh, clean_environment, command, until
from tests.mesh.test_infer import configuration, images, is_back, model, plain

pytestmark = [
    pytest.mark.mesh,
    pytest.mark.deep,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

MakeMesh = Callable[[int], LocalMesh]
IMAGES = 10_000
TIMES = 5


def begun(mesh: LocalMesh, via: int, config: Path, out: Path) -> str:
    """An inference that has some results, and not all; its id."""
    job: str = dmi.connect(mesh.node(via)).infer(config, out).id
    for event in dmi.connect(mesh.node(via)).job(job).events():
        if event["step"]:
            assert event["step"] < event["steps"], "it is not over yet"
            return job
    raise AssertionError


def ended(mesh: LocalMesh, via: int, config: Path, out: Path) -> bytes:
    """What the same command writes with ``--resume``."""
    command("infer", config, "--out", out, "--resume", home=mesh.node(via), seconds=300)
    return (out / "results.jsonl").read_bytes()


def can_lose_one(mesh: LocalMesh, via: int, dead: int = 0) -> bool:
    """Are so many members dead, and three voters alive?"""
    members = mesh.status(via)["members"]
    alive = [member for member in members if member["state"] == "alive"]
    return len(members) - len(alive) == dead and sum(member["voter"] for member in alive) >= 3


def test_ten_thousand_images_have_the_bytes_of_a_plain_loop(make_mesh: MakeMesh, tmp_path: Path) -> None:
    images(tmp_path / "in", IMAGES)
    model(tmp_path / "m.pt")
    expected = plain(tmp_path)
    bad = {f"{number:05}.png" for number in range(7, IMAGES, 1_000)}
    for name in bad:
        (tmp_path / "in" / name).write_bytes(b"no picture")
    lines = [
        json.dumps({"id": row["id"], "error": "no image that can be read"}).encode() + b"\n"
        if row["id"] in bad
        else line
        for line in expected.splitlines(keepends=True)
        if (row := json.loads(line))
    ]
    assert len({json.loads(line)["id"] for line in lines}) == IMAGES
    config, mesh = configuration(tmp_path), make_mesh(4)
    for nodes in (1, 2, 4):
        command("infer", config, "--nodes", nodes, "--out", tmp_path / f"on-{nodes}", home=mesh.node(0), seconds=300)
        assert (tmp_path / f"on-{nodes}" / "results.jsonl").read_bytes() == b"".join(lines), f"on {nodes} nodes"

    survive(mesh, config, b"".join(lines), tmp_path)


def survive(mesh: LocalMesh, config: Path, expected: bytes, folder: Path) -> None:
    """The coordinator of four nodes is killed in mid-run, and another one, again and again; then all of them."""
    for time in range(TIMES):
        via = time % 4
        out = folder / f"killed-{time}"
        begun(mesh, via, config, out)
        coordinator = int(mesh.status(via)["coordinator"][1:])
        victim = next(index for index in range(4) if index not in {via, coordinator})
        mesh.kill(victim)
        if coordinator != via:
            until(lambda: can_lose_one(mesh, via, 1), 30, "another voter")  # noqa: B023 (called at once)
            mesh.kill(coordinator)
        assert ended(mesh, via, config, out) == expected, f"the {time}th time"
        for index in {victim, coordinator} - {via}:
            mesh.start(index)
        until(lambda: can_lose_one(mesh, via), 60, "all are back")  # noqa: B023

    begun(mesh, 0, config, folder / "restarted")
    for index in range(4):
        mesh.kill(index)
    for index in range(4):
        mesh.start(index)
    until(lambda: is_back(mesh), 60, "the mesh is back")
    assert ended(mesh, 3, config, folder / "restarted") == expected


@contextmanager
def watched(mesh: LocalMesh) -> Iterator[dict[str, int]]:
    """The most memory, in bytes, that any process of a replica had, by what it runs."""
    peaks: dict[str, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for process in mesh.processes():
                try:
                    command_line, used = process.cmdline(), process.memory_info().rss
                except psutil.Error:
                    continue
                module = next((part for part in command_line if part.startswith("dmi.infer.")), None)
                if module is not None:
                    peaks[module] = max(used, peaks.get(module, 0))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def test_a_replica_needs_no_more_memory_for_more_inputs(make_mesh: MakeMesh, tmp_path: Path) -> None:
    images(tmp_path / "in", IMAGES)
    (tmp_path / "few").mkdir()
    for path in sorted((tmp_path / "in").iterdir())[: IMAGES // 10]:
        os.link(path, tmp_path / "few" / path.name)
    model(tmp_path / "m.pt")
    mesh, used = make_mesh(1), {}
    for name in ("few", "in"):
        given = {"kind": "images", "path": str(tmp_path / name)}
        with watched(mesh) as used[name]:
            command("infer", configuration(tmp_path, input=given), "--out", tmp_path / f"o-{name}", home=mesh.node(0))
    for module, few in used["few"].items():
        assert used["in"][module] < 1.05 * few, module


def table(tmp_path: Path, rows: int) -> dict[str, Any]:
    """A configuration with a model of four columns, and a table of so many rows."""
    random = np.random.default_rng(rows)
    columns = {name: random.standard_normal(rows, dtype=np.float32) for name in "abcd"}
    made = pa.table({"key": np.arange(rows) * 3, **columns})
    parquet.write_table(made, tmp_path / f"{rows}.parquet", row_group_size=10_000)  # what a reader has in memory
    given = {"kind": "parquet", "path": str(tmp_path / f"{rows}.parquet"), "id": "key", "columns": list("abcd")}
    return {"model": "m", "input": given, "batch_size": 512, "output": {"top": 1}}


def with_model(mesh: LocalMesh, tmp_path: Path) -> None:
    """The mesh has one of four columns."""
    (tmp_path / "net.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(4, 3)\n")
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "w.safetensors")
    command("models", "add", "m", f"{tmp_path}/net.py:make", "--weights", tmp_path / "w.safetensors", home=mesh.node(0))


def test_a_table_of_many_rows_has_the_bytes_of_one_node(make_mesh: MakeMesh, tmp_path: Path) -> None:
    mesh, found = make_mesh(4), table(tmp_path, 200_000)
    with_model(mesh, tmp_path)
    (tmp_path / "c.json").write_text(json.dumps(found))
    for nodes in (1, 2, 4):
        command(
            "infer",
            tmp_path / "c.json",
            "--nodes",
            nodes,
            "--out",
            tmp_path / f"on-{nodes}",
            home=mesh.node(0),
            seconds=400,
        )
    expected = b"".join(table_loop(tmp_path))
    for nodes in (1, 2, 4):
        assert (tmp_path / f"on-{nodes}" / "results.jsonl").read_bytes() == expected
    survive(mesh, tmp_path / "c.json", expected, tmp_path)


def table_loop(tmp_path: Path) -> Iterator[bytes]:
    """What a loop in torch writes."""
    net = nn.Linear(4, 3).eval()
    net.load_state_dict(load_file(tmp_path / "w.safetensors"))
    rows = parquet.read_table(tmp_path / "200000.parquet")
    values = torch.from_numpy(np.stack([rows[name].to_numpy() for name in "abcd"], axis=1))
    with torch.inference_mode():
        for first in range(0, len(values), 512):
            scores = torch.softmax(net(values[first : first + 512]), dim=1)
            for place, (score, category) in enumerate(zip(*scores.max(1), strict=True), first):
                row = {"id": rows["key"][place].as_py(), "category": category.item(), "score": score.item()}
                yield json.dumps(row).encode() + b"\n"


def client_bytes(config: Path, out: Path, home: Path) -> int:
    """The most memory that the command needed."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    verb: list[str | Path] = [Path(sys.executable).parent / "dmi-node", "infer", config, "--out", out, "--home", home]
    done = subprocess.run(
        [sys.executable, "-c", script, *verb],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=800,
        check=False,
    )
    assert not done.returncode, done.stderr[-1_000:]
    return int(done.stdout.split()[-1]) * 1024


def test_a_million_rows_stream_through(make_mesh: MakeMesh, tmp_path: Path) -> None:
    mesh, used, peaks = make_mesh(2), {}, {}
    with_model(mesh, tmp_path)
    for rows in (10_000, 1_000_000):
        (tmp_path / "c.json").write_text(json.dumps(table(tmp_path, rows)))
        with watched(mesh) as peaks[rows]:
            used[rows] = client_bytes(tmp_path / "c.json", tmp_path / f"o-{rows}", mesh.node(0))
    size = (tmp_path / "o-1000000" / "results.jsonl").stat().st_size
    assert size > 50_000_000
    assert used[1_000_000] < used[10_000] + size // 4, "the merged output is never whole in memory"
    for module, few in peaks[10_000].items():
        assert peaks[1_000_000][module] < 1.25 * few, module
