"""A mesh of real hosts: each node in its own network namespace, on its own address, joined by invitation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dmi
from tests.hosts.hosts import WHY_NOT, Hosts
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
