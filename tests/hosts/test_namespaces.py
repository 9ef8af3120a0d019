"""A mesh of real hosts: each node in its own network namespace, on its own address, joined by invitation."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dmi
from tests.hosts.hosts import WHY_NOT, Hosts
from tests.mesh.load import write_model
from tests.mesh.local import ROOT, command, until

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(240),
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path / "hosts", 3)
    try:
        made.up()
        yield made
    finally:
        made.close()


def state(hosts: Hosts, via: int, name: str) -> Any:
    return next(m["state"] for m in dmi.connect(hosts.node(via)).members() if m["name"] == name)


def test_hosts_join_train_and_notice_a_pulled_cable(hosts: Hosts) -> None:
    assert sum(member["voter"] for member in dmi.connect(hosts.node(0)).members()) == 3

    script = ROOT / "tests" / "mesh" / "scripts" / "linear.py"
    job = dmi.connect(hosts.node(1)).submit(script)
    assert job.wait()["state"] == "succeeded"
    assert "succeeded" in command("why", job.id, home=hosts.node(2)).stdout
    command("export", job.id, hosts.home / "weights.safetensors", home=hosts.node(2))
    assert (hosts.home / "weights.safetensors").stat().st_size > 0

    hosts.unplug(2)
    until(lambda: state(hosts, 0, "n2") == "dead", 30, "n2 is dead to the others")
    until(lambda: hosts.status(1)["quorum"], 20, "two of three go on")
    until(lambda: not hosts.status(2)["quorum"], 20, "n2 knows that it has no quorum")


@pytest.mark.deep
def test_a_gateway_that_others_can_reach_wants_a_token(hosts: Hosts, tmp_path: Path) -> None:
    mesh = dmi.connect(hosts.node(0))
    mesh.models.add("numbers", write_model(tmp_path / "numbers.pt2"))
    url = mesh.serve("numbers", replicas=2).ready()[0]
    assert not url.startswith("http://127.")

    def asked(*more: str) -> str:
        """By a host of the mesh, with curl: what it says."""
        body = '{"instances": [[1, 2, 3, 4, 5, 6]]}'
        line = [*hosts.within(1), "curl", "--silent", *more, "-d", body, f"{url}/v1/models/numbers:predict"]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout

    assert "a token is wanted" in asked()
    token = command("token", "add", "site", home=hosts.node(1)).stdout.strip()
    with_token = ("-H", f"Authorization: Bearer {token}")
    until(lambda: "predictions" in asked(*with_token), 20, "the token is known")
    assert "not known" in asked("-H", f"Authorization: Bearer {token}x")
    command("token", "rm", "site", home=hosts.node(2))
    until(lambda: "not known" in asked(*with_token), 20, "it was taken back")
