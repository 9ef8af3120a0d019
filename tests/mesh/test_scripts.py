"""What goes wrong in a script, or in what is asked for, has its own clear line."""

from pathlib import Path

import pytest
import torch

import dmi
from dmi.errors import JobFailedError
from tests.mesh.local import LocalMesh, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

LINEAR = Path(__file__).parent / "scripts" / "linear.py"


@pytest.mark.parametrize(
    ("trouble", "hint"),
    [
        ("raises", "planted in line 16"),
        pytest.param("data", "digest of the data", marks=pytest.mark.deep),
        pytest.param("package", "'no_such_package' is not installed", marks=pytest.mark.deep),
        pytest.param("samples", "fewer leaves", marks=pytest.mark.deep),
        pytest.param("parameters", "without parameters", marks=pytest.mark.deep),
        pytest.param("nan", "the loss is nan", marks=pytest.mark.deep),
    ],
)
def test_the_reason_is_one_clear_line(five: LocalMesh, trouble: str, hint: str) -> None:
    job = dmi.connect(five.home).submit(LINEAR, [trouble], workers=2)
    with pytest.raises(JobFailedError):
        job.wait()
    why = job.why()
    assert why["state"] == "failed"
    assert hint in why["sentence"] + (why["detail"] or "")
    assert "\n" not in why["sentence"]
    shown = command("why", job.id, home=five.node(3)).stdout
    assert hint in shown
    assert ("Traceback" in shown) == (trouble == "raises")
    assert "runpy" not in shown


@pytest.mark.deep
def test_a_script_without_a_step_succeeds_with_what_it_began_with(five: LocalMesh) -> None:
    job = dmi.connect(five.home).submit(LINEAR, ["epochs"], workers=2)
    assert job.wait()["state"] == "succeeded"
    assert "0 steps" in job.why()["sentence"]


@pytest.mark.deep
def test_what_the_lead_exports_stays_where_the_log_says(five: LocalMesh, tmp_path: Path) -> None:
    job = dmi.connect(five.home).submit(LINEAR, ["export"], workers=2)
    assert job.wait()["state"] == "succeeded"
    [path] = [Path(line.removeprefix("exported ")) for _, line in job.logs() if line.startswith("exported ")]
    until(lambda: list(path.parent.iterdir()) == [path], 20, "what the script was given is removed")
    job.export(tmp_path / "model.pt")
    here, there = (torch.load(file, weights_only=True) for file in (tmp_path / "model.pt", path))
    torch.testing.assert_close(here["model_state_dict"], there["model_state_dict"], rtol=0, atol=0)
    assert here["optimizer_state_dict"]["param_groups"] == there["optimizer_state_dict"]["param_groups"]


def test_a_syntax_error_is_found_at_submit(five: LocalMesh, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    said = command("submit", tmp_path / "broken.py", home=five.node(0), check=False)
    assert said.returncode == 2
    assert "broken.py, line 1" in said.stderr


@pytest.mark.parametrize(
    ("options", "hint", "code"),
    [
        (("--workers", "9"), "the mesh has 5 nodes", 1),
        (("--backups", "9"), "9 backups were asked for", 1),
        (("--leaves", "3"), "power of two", 2),
    ],
)
def test_what_cannot_be_is_refused_at_submit(five: LocalMesh, options: tuple[str, ...], hint: str, code: int) -> None:
    said = command("submit", *options, LINEAR, home=five.node(0), check=False)
    assert said.returncode == code
    assert hint in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1


@pytest.mark.deep
def test_leaves_of_the_command_and_of_the_script_must_agree(five: LocalMesh) -> None:
    job = dmi.connect(five.home).submit(LINEAR, workers=1, leaves=8)
    with pytest.raises(JobFailedError, match="leaves=4"):
        job.wait()


async def test_the_same_with_await(five: LocalMesh) -> None:
    mesh = await dmi.aio.connect(five.home)
    job = await mesh.submit(LINEAR, workers=2)
    states = [event["state"] async for event in job.events()]
    assert states[-1] == "succeeded"
    assert (await job.wait())["step"] == 8
    assert [job["id"] for job in await mesh.jobs()].count(job.id) == 1
    with pytest.raises(dmi.errors.UnknownJobError):
        await mesh.job("no-such-job")
