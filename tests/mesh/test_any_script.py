"""Scripts that use all that a run has, with a worker that is killed in the middle of each: the plain run's bits, and its last
line."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dmi
from dmi.job import Job
from tests.mesh.local import ROOT, LocalMesh, clean_environment, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]

SCRIPTS = Path(__file__).parent / "scripts"
EXAMPLES = ROOT / "examples"
ALL = {
    "fine_tuning": EXAMPLES,
    "early_stopping": EXAMPLES,
    "weighted_sampling": EXAMPLES,
    "text": EXAMPLES,
    "averaged_weights": EXAMPLES,
    "mixed_precision": EXAMPLES,
    "rounds": SCRIPTS,
    "habits": SCRIPTS,
    "companions": SCRIPTS,
    "steady": SCRIPTS,
    "best": SCRIPTS,
}
ARGUMENTS = {"steady": ["4"], "early_stopping": ["--epochs", "5"], "text": ["--epochs", "3"]}
GATED = {("rounds", 2)}
PAUSE_S = 0.05


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The digest and the last line of each script's plain run, once it was asked for."""
    return {}


def undisturbed(name: str, directory: Path) -> tuple[str, str]:
    path = directory / "plain.safetensors"
    done = subprocess.run(
        [sys.executable, ALL[name] / f"{name}.py", *ARGUMENTS.get(name, [])],
        env=clean_environment(DMI_EXPORT=str(path)),
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return hashlib.sha256(path.read_bytes()).hexdigest(), done.stdout.strip().splitlines()[-1]


def replace_one(mesh: LocalMesh, job: Job, which: int) -> None:
    """``kill -9`` to a worker, and another one is there in its place."""
    node = dmi.connect(mesh.home)

    def pids() -> list[int]:
        mine = [role for role in node.roles() if role["job"] == job.id and role["role"] == "worker"]
        return [role["pid"] for role in mine if role["pid"]]

    before = pids()
    os.kill(before[which % len(before)], signal.SIGKILL)
    until(lambda: set(pids()) - set(before) and len(pids()) == len(before), 60, "another worker is there")


def who_computed(mesh: LocalMesh, job: Job) -> int:
    """So many processes have computed leaves of it."""
    ledgers = mesh.home.glob(f"n*/jobs/{job.id}/*/worker-*/ledger.jsonl")
    return sum(file.stat().st_size > 0 for file in ledgers)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        pytest.param(name, workers, marks=[] if (name, workers) in GATED else pytest.mark.deep)
        for name in ALL
        for workers in (1, 2, 3, 5)
    ],
)
def test_a_loss_in_the_middle_changes_no_bit(
    five: LocalMesh, plain: dict[str, tuple[str, str]], tmp_path: Path, name: str, workers: int
) -> None:
    plain[name] = plain.get(name) or undisturbed(name, tmp_path)
    mesh = dmi.connect(five.home)
    script = ALL[name] / f"{name}.py"
    arguments = [str(PAUSE_S), str(tmp_path), str(script), *ARGUMENTS.get(name, [])]
    job = mesh.submit(SCRIPTS / "paced.py", arguments, workers=workers, name=name)
    until((tmp_path / "in the middle").exists, 60, "it is in the middle")
    replace_one(five, job, which=workers + sorted(ALL).index(name))
    (tmp_path / "go on").touch()
    until(lambda: who_computed(five, job) > workers, 90, "who came instead has computed")
    (tmp_path / "has come in").touch()
    assert job.wait()["state"] == "succeeded"
    job.export(tmp_path / "model.safetensors")
    digest, last = plain[name]
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == digest
    until(lambda: any(line == last for _, line in job.logs()), 10, f"the line {last!r}")
    assert command("why", job.id, home=five.node(1)).returncode == 0


@pytest.mark.deep
def test_what_a_script_holds_of_run_state_is_the_same_on_every_worker(five: LocalMesh, tmp_path: Path) -> None:
    """Also on the one that came instead of another, and had taken its variables before the loop."""
    digest, last = undisturbed("best", tmp_path)
    mesh = dmi.connect(five.home)
    arguments = [str(PAUSE_S), str(tmp_path), str(ALL["best"] / "best.py")]
    job = mesh.submit(SCRIPTS / "paced.py", arguments, workers=2, name="best")
    until((tmp_path / "in the middle").exists, 60, "it is in the middle")
    replace_one(five, job, which=1)
    (tmp_path / "go on").touch()
    until(lambda: who_computed(five, job) > 2, 90, "who came instead has computed")
    (tmp_path / "has come in").touch()
    assert job.wait()["state"] == "succeeded"
    until(lambda: [line for _, line in job.logs()].count(last) == 2, 10, "both workers have the plain run's values")
    assert not any("at the end" in line for _, line in job.logs())
    job.export(tmp_path / "model.safetensors")
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == digest


@pytest.mark.deep
def test_what_differs_between_workers_at_the_end_is_told(five: LocalMesh, tmp_path: Path) -> None:
    script = tmp_path / "differs.py"
    text = (SCRIPTS / "best.py").read_text()
    script.write_text(text + "\nrun.state['who'] = run.is_lead\n")
    job = dmi.connect(five.home).submit(script, workers=2)
    assert job.wait()["state"] == "succeeded"
    until(lambda: any("at the end" in line for _, line in job.logs()), 10, "it is told")
    lines = [line for _, line in job.logs() if "at the end" in line]
    assert len(lines) == 1
    assert "has other values than worker-" in lines[0]
    assert lines[0].endswith("whose are kept: run.state['who']")
