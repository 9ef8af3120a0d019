"""``docs/json.md`` says what ``--json`` prints: every key of it, and no other, on a real node."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.local import ROOT, LocalMesh, command, job, submit, until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

DOCUMENT = (ROOT / "docs" / "json.md").read_text()
SCRIPT = """
import sys, time, torch, dmi
from torch.utils.data import TensorDataset
run = dmi.init(leaves=2)
model = run.model(torch.nn.Linear(1, 1))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1e-4))
for epoch in run.epochs(int(sys.argv[1])):
    for step in run.steps(TensorDataset(torch.ones(8, 1), torch.ones(8, 1)), batch_size=4):
        for x, y in step:
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        time.sleep(0.1)
print("done", flush=True)
"""


def keys_in(text: str) -> set[str]:
    """The keys that a shape names: ``{"a", "b": [{"c"}]}``. Words after a colon or an "or" are values."""
    return set(re.findall(r'(?:\{|, )"(\w+)"(?=[:,}])', text))


def documented(verb: str) -> set[str]:
    row = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{verb}` |"))
    keys = keys_in(row)
    for part in ("member", "job", "model", "tensor", "disk"):
        if f"[{part}]" in row:
            shape = re.search(rf"^\* {part}: `(.*?)`", DOCUMENT, re.M | re.S)[1]  # type: ignore[index]
            row, keys = row + shape, keys | keys_in(shape)
    return keys


DATA = {"refused", "files", "model_bytes_by_id", "job_bytes_by_id"}
"""Objects whose keys are data: what was refused by reason, what is stored by owner."""


def keys_of(value: Any) -> set[str]:
    """Every key inside."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if isinstance(value, dict):
        return set(value).union(*(keys_of(inner) for key, inner in value.items() if key not in DATA))
    return set()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    home = tmp_path_factory.mktemp("json")
    (home / "train.py").write_text(SCRIPT)
    mesh = LocalMesh(home / "mesh", 1)
    mesh.up()
    yield mesh
    mesh.close()


@pytest.fixture(scope="module")
def done(mesh: LocalMesh) -> str:
    """A job that has succeeded."""
    identity = submit(mesh, mesh.home.parent / "train.py", "--", "1")
    until(lambda: job(mesh, identity)["state"] == "succeeded", 90, "the job succeeds")
    return identity


@pytest.fixture(scope="module")
def running(mesh: LocalMesh) -> str:
    """A job that goes on."""
    identity = submit(mesh, mesh.home.parent / "train.py", "--name", "long", "--", "1000000")
    until(lambda: (job(mesh, identity)["step"] or 0) > 0, 90, "the job moves")
    return identity


def said(mesh: LocalMesh, verb: str, *rest: object) -> list[Any]:
    """The JSON values that were printed, one a line."""
    return [json.loads(line) for line in command(verb, "--json", *rest, home=mesh.node(0)).stdout.splitlines()]


def test_the_reader_of_shapes_tells_keys_from_values() -> None:
    assert keys_in('`{"a", "b": "x" or "y", "c": [{"d": "u", "v" or "w"}]}`') == {"a", "b", "c", "d"}


def test_every_verb_has_a_row(mesh: LocalMesh) -> None:
    for verb in ("up", "down", "join", "leave", "expel"):
        assert documented(verb)


@pytest.mark.parametrize("verb", ["status", "members", "jobs", "roles"])
def test_a_question(mesh: LocalMesh, running: str, verb: str) -> None:
    [value] = said(mesh, verb)
    assert keys_of(value) == documented(verb)


def test_version_and_invitation(mesh: LocalMesh) -> None:
    for verb in ("version", "invite"):
        [value] = said(mesh, verb)
        assert keys_of(value) == documented(verb)


def test_a_job(mesh: LocalMesh, done: str, tmp_path: Path) -> None:
    for verb, rest in (("why", ()), ("export", (tmp_path / "out.safetensors",))):
        [value] = said(mesh, verb, done, *rest)
        assert keys_of(value) == documented(verb)
    lines = said(mesh, "logs", done)
    assert {"worker": "worker-0@n0", "line": "done"} in lines
    assert keys_of(lines) == documented("logs")


def test_cancel_and_submit(mesh: LocalMesh, running: str) -> None:
    [value] = said(mesh, "submit", mesh.home.parent / "train.py", "--", "1000000")
    assert keys_of(value) == documented("submit")
    for identity in (value["id"], running):
        [value] = said(mesh, "cancel", identity)
        assert value == {"id": identity, "state": "cancelled"}
        assert keys_of(value) == documented("cancel")
        assert job(mesh, identity)["state"] == "cancelled"
        [value] = said(mesh, "rm", identity)
        assert value == {"removed": identity}
        assert keys_of(value) == documented("rm")
        assert command("why", identity, home=mesh.node(0), check=False).returncode == 1


def test_models(mesh: LocalMesh, done: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(1, 1)\n")
    command("export", done, tmp_path / "w.safetensors", home=mesh.node(0))
    given = (f"{tmp_path}/net.py:make", "--weights", tmp_path / "w.safetensors")

    def models(*rest: object) -> Any:
        return json.loads(command("models", *rest, "--json", home=mesh.node(0)).stdout)

    added, shown, removed = models("add", "m", *given), models("show", "m"), models("rm", "m:1")
    assert added == shown
    assert keys_of(added) == documented("models add") == documented("models show")
    assert keys_of(removed) == documented("models rm")
    from_job = models("add", "j", "--job", done, "--model", f"{tmp_path}/net.py:make")
    assert from_job["hash"] == added["hash"], "a job's weights are those that it exports"
    disks = json.loads(command("df", "--json", home=mesh.node(0)).stdout)
    assert keys_of(disks) == documented("df")
    assert disks[0]["model_bytes_by_id"] == {"j:1": from_job["size_bytes"]}
    assert disks[0]["models_bytes"] == from_job["size_bytes"]
    assert done in disks[0]["job_bytes_by_id"]
    shown = command("df", "--all", home=mesh.node(0)).stdout
    assert "j:1" in shown
    listed = models()
    assert listed == [from_job]
    assert keys_of(listed) == documented("models")


def test_up_and_down(tmp_path: Path) -> None:
    for verb, options in (("up", ("--nodes", "1", "--detach")), ("down", ())):
        value = json.loads(command(verb, *options, "--home", tmp_path, "--json", home=tmp_path).stdout)
        assert keys_of(value) == documented(verb)
