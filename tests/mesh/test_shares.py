"""Training and serving on one host, each with the share that it was promised."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

import dmi
from tests.mesh.load import WIDTH, Load, write_model
from tests.mesh.local import ROOT, LocalMesh, command, until
from tests.mesh.test_same_bits import plain, sha256

pytestmark = [
    pytest.mark.mesh,
    pytest.mark.timeout(240),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processors are shared out"),
]

STEADY = ROOT / "tests/mesh/scripts/steady.py"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """One node, with a model."""
    mesh = LocalMesh(tmp_path_factory.mktemp("one"), 1)
    mesh.up()
    dmi.connect(mesh.node(0)).models.add("numbers", write_model(mesh.home / "numbers.pt2"))
    yield mesh
    mesh.close()


def cores_of(process: psutil.Process) -> set[frozenset[int]]:
    """Where its threads, and all that descends from it, may run."""
    found = set()
    for each in (process, *process.children(recursive=True)):
        found |= {frozenset(os.sched_getaffinity(thread.id)) for thread in each.threads()}
    return found


def test_each_has_processors_of_its_own_and_others_wait(local: LocalMesh) -> None:
    home, mesh = local.node(0), dmi.connect(local.node(0))
    command("serve", "numbers", "--cpus", 1, "--memory", "1GB", home=home)
    served = mesh.job("numbers")
    trained = mesh.submit(STEADY, ["2000"], cpus=1, memory="1GB", name="trained")
    until(lambda: any(role["role"] == "worker" for role in mesh.roles()), 30, "the training has begun")
    pids = {(role["job"], role["role"]): role["pid"] for role in mesh.roles()}

    daemon = psutil.Process(local.pid(0))
    computing = [child for child in daemon.children(recursive=True) if child.cwd().startswith(str(home / "jobs"))]
    ours = [psutil.Process(pid) for (job, _), pid in pids.items() if job == trained.id]
    theirs = [process for process in computing if process not in ours]
    assert (len(ours), len(theirs)) == (2, 3), "a replica, who computes for it, and a gateway"

    def parted() -> bool:
        mine = set().union(*map(cores_of, ours))
        other = set().union(*map(cores_of, theirs))
        return len(mine) == len(other) == 1 and not next(iter(mine)) & next(iter(other))

    until(parted, 10, "each has one processor")
    (member,) = mesh.members()
    assert member["cpus"] - member["cpus_left"] == 2
    assert member["memory"] - member["memory_left"] == 2 * 10**9

    third = mesh.submit(STEADY, ["1"], cpus=member["cpus"], name="third")
    assert third.why()["sentence"].startswith(f"waiting for a node with {member['cpus']} processors left; n0 has ")
    assert mesh.predict("numbers", [[1.0] * WIDTH]).shape == (1, 2)
    trained.cancel()
    command("unserve", "numbers", home=home)
    until(lambda: third.status()["state"] not in {"queued"}, 30, "it is placed once there is room")
    third.cancel()
    assert served.why()["state"] == "cancelled"


@pytest.mark.parametrize(
    "line",
    [
        ("submit", STEADY, "--memory", "60MB", "--wait", "--", 1),
        pytest.param(("serve", "numbers", "--memory", "60MB"), marks=pytest.mark.deep),
    ],
)
def test_who_needs_more_memory_than_it_was_promised_is_told_so(local: LocalMesh, line: tuple[object, ...]) -> None:
    done = command(*line, home=local.node(0), check=False)
    assert done.returncode == 1
    assert " MB of memory, and was promised 60.0 MB (--memory)" in done.stderr.splitlines()[-1]
    assert json.loads(command("jobs", "--json", home=local.node(0)).stdout)[-1]["memory"] == 60_000_000


def test_more_memory_than_any_node_has_is_refused(local: LocalMesh) -> None:
    refused = command("submit", STEADY, "--memory", "900TB", "--", 1, home=local.node(0), check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("no node has 900.0 TB for jobs, the largest has ")
    assert refused.stdout == ""


@pytest.mark.deep
def test_a_training_and_a_deployment_share_nodes_and_one_of_these_is_killed(
    make_mesh: Callable[[int], LocalMesh], tmp_path: Path
) -> None:
    """The bits of the plain run, and no failed request."""
    wanted = plain(tmp_path / "plain.safetensors", str(STEADY.relative_to(ROOT)), "42")
    local = make_mesh(3)
    mesh = dmi.connect(local.node(0))
    mesh.models.add("numbers", write_model(tmp_path / "numbers.pt2"))
    url = mesh.serve("numbers", replicas=3, cpus=1, memory="1GB").ready()[0]
    job = mesh.submit(STEADY, ["42"], cpus=1, memory="2GB")
    load = Load(url, "numbers", pause_s=0.01)
    try:
        until(lambda: int(job.status()["step"] or 0) >= 30, 90, "steps are made")
        assert all(member["cpus"] - member["cpus_left"] == 2 for member in mesh.members())
        host = urlsplit(url).hostname
        asked = next(member["name"] for member in mesh.members() if member["address"].startswith(f"{host}:"))
        gone = next(index for index in (1, 2) if f"n{index}" != asked)
        local.kill(gone)
        until(lambda: len({role["node"] for role in mesh.roles()}) == 2, 20, "two nodes go on")
        local.start(gone)
        job.wait()
        until(lambda: f"n{gone}" in mesh.deployments()[0]["replicas"], 60, "the node serves again")
    finally:
        load.end()
    assert (load.failed, load.wrong) == ([], [])
    command("export", job.id, tmp_path / "mesh.safetensors", home=local.node(0))
    assert sha256(tmp_path / "mesh.safetensors") == wanted
