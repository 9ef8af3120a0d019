"""The promise, undisturbed: whoever computed it, the exported file has the same SHA-256."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.mesh.local import BIN, ROOT, LocalMesh, clean_environment, command, job, submit, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(600)]

SCRIPTS = {
    "digits": ("examples/digits.py", "--epochs", "1"),
    "transformer": ("examples/transformer.py", "--epochs", "1"),
}
MESHES = [(2, 3), *(pytest.param(*mesh, marks=pytest.mark.deep) for mesh in [(1, 1), (3, 1), (3, 3), (5, 3)])]
ENDED = {"succeeded", "failed", "cancelled"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain(path: Path, *script: str) -> str:
    done = subprocess.run(
        [BIN / "python", *script],
        env=clean_environment(DMI_EXPORT=str(path)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sha256(path)


def train(mesh: LocalMesh, path: Path, workers: int, servers: int, *script: str) -> str:
    name, *arguments = script
    identity = submit(mesh, ROOT / name, "--workers", workers, "--servers", servers, "--leaves", 8, "--", *arguments)
    until(lambda: job(mesh, identity)["state"] in ENDED, 240, f"{identity} ends")
    why = command("why", identity, home=mesh.node(0), check=False).stdout
    assert job(mesh, identity)["state"] == "succeeded", why
    command("export", identity, path, home=mesh.node(workers % mesh.size))
    return identity


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.deep) for name in ("digits", "transformer")]
)
def script(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return SCRIPTS[request.param]


@pytest.fixture(scope="module")
def expected(script: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain(tmp_path_factory.mktemp("plain") / "plain.safetensors", *script)


@pytest.mark.parametrize(("workers", "servers"), MESHES)
def test_a_mesh_gives_the_bits_of_the_plain_run(
    five: LocalMesh, script: tuple[str, ...], expected: str, workers: int, servers: int, tmp_path: Path
) -> None:
    path = tmp_path / "mesh.safetensors"
    identity = train(five, path, workers, servers, *script)
    assert sha256(path) == expected
    shares = [ledger(five, identity, worker) for worker in range(workers)]
    steps = {step for share in shares for step, _ in share}
    every_leaf = {(step, leaf) for step in steps for leaf in range(8)}
    assert set().union(*shares) == every_leaf
    assert sum(map(len, shares)) == len(every_leaf)
    assert all(shares), "each worker computed leaves"


def ledger(mesh: LocalMesh, identity: str, worker: int) -> set[tuple[int, int]]:
    """The (step, leaf) pairs that this worker says it computed."""
    files = list(mesh.home.glob(f"n*/jobs/{identity}/*/worker-{worker}/ledger.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {(line["step"], line["leaf"]) for line in lines}


@pytest.mark.deep
def test_the_weights_have_moved_and_the_seed_matters(tmp_path: Path) -> None:
    name = "examples/digits.py"
    seeds = {seed: plain(tmp_path / f"{seed}", name, "--epochs", "1", "--seed", str(seed)) for seed in (0, 1)}
    assert seeds[0] != seeds[1]
    plain(tmp_path / "untrained", name, "--epochs", "0")
    trained, untrained = load_file(tmp_path / "0"), load_file(tmp_path / "untrained")
    assert trained.keys() == untrained.keys()
    assert all((trained[name] != untrained[name]).any() for name in trained)
