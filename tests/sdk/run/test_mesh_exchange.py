"""Real servers and workers, with the test as their daemon: the bits of a plain run, whoever computes what."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.roles import Completed, Exited, PartWritten, Progressed, RoleProcesses
from dmi_protocol.training.tree import leaf_sizes, shares
from dmi_tensor.checkpoint import export, read_model

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).parent / "small.py"
STOPPED = Exited(0, signal.SIGTERM)
"""Role processes are there until they are stopped."""
STEPS = [32, 32, 19, 32, 32, 19]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of the plain run, without and with clipping."""
    found = {}
    for clip in ("none", "0.1"):
        path = tmp_path_factory.mktemp("plain") / "weights.safetensors"
        environment = {**os.environ, "DMI_EXPORT": str(path)}
        subprocess.run([sys.executable, SCRIPT, clip], env=environment, check=True, timeout=60, capture_output=True)
        found[clip] = digest(path)
    assert found["none"] != found["0.1"], "clipping changes the weights"
    return found


def leaves_of(roles: RoleProcesses, worker: int) -> list[dict[str, int]]:
    """The ledger of a worker."""
    path = Path(roles.of("worker", worker).launch.directory) / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_ledgers(roles: RoleProcesses, workers: int) -> None:
    """Each worker computed its own leaves, with their samples, and no others."""
    for worker, share in enumerate(shares((1.0,) * workers, 8)):
        expected = [
            {"step": step, "leaf": leaf, "samples": leaf_sizes(samples, 8)[leaf]}
            for step, samples in enumerate(STEPS)
            for leaf in share
        ]
        assert leaves_of(roles, worker) == expected


@pytest.mark.deep
def test_without_a_step_the_weights_are_those_of_the_beginning(tmp_path: Path) -> None:
    script = tmp_path / "untrained.py"
    script.write_text(SCRIPT.read_text().replace("epochs(2)", "epochs(0)").replace('print(run.mean("loss"))', ""))
    environment = {**os.environ, "DMI_EXPORT": str(tmp_path / "plain.safetensors")}
    subprocess.run([sys.executable, script, "none"], env=environment, check=True, timeout=60, capture_output=True)
    with RoleProcesses(tmp_path, script, workers=2, servers=2, leaves=None, args=["none"]) as roles:
        roles.introduce()
        said = roles.finish()
        assert all(told[-1] == STOPPED for told in said.values()), said
        model = read_model([Path(part.path) for part in roles.parts(said)])
    assert model.step == 0
    export(tmp_path / "weights.safetensors", model.tensors())
    assert digest(tmp_path / "weights.safetensors") == digest(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("workers", "servers", "clip"),
    [
        (1, 1, "none"),
        pytest.param(2, 2, "none", marks=pytest.mark.deep),
        pytest.param(3, 1, "0.1", marks=pytest.mark.deep),
        (3, 3, "0.1"),
        pytest.param(5, 3, "none", marks=pytest.mark.deep),
        pytest.param(9, 1, "none", marks=pytest.mark.deep),
    ],
)
def test_a_mesh_gives_the_bits_of_a_plain_run(
    workers: int, servers: int, clip: str, plain: dict[str, str], tmp_path: Path
) -> None:
    with RoleProcesses(tmp_path, SCRIPT, workers=workers, servers=servers, leaves=None, args=[clip]) as roles:
        roles.introduce()
        said = roles.finish()
        for name, told in said.items():
            assert [type(message) for message in told[-2:]] == [Completed, Exited], f"{name}: {told}"
            assert told[-1] == STOPPED
        model = read_model([Path(part.path) for part in roles.parts(said)])
        check_ledgers(roles, workers)
    assert model.step == len(STEPS)
    export(tmp_path / "weights.safetensors", model.tensors())
    assert digest(tmp_path / "weights.safetensors") == plain[clip]
    for part in roles.parts(said):
        assert part.blob == digest(Path(part.path))
    checkpoints = [m for m in said["server-0"] if isinstance(m, PartWritten) and not m.final]
    assert [part.step for part in checkpoints] == [3, 6]
    assert any(isinstance(message, Progressed) for message in said["worker-0"])
