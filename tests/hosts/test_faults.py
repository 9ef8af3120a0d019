"""The fault tool does what it says, and a partition in the middle of a training changes no bit."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import dmi
from tests.hosts import faults
from tests.hosts.hosts import WHY_NOT, Hosts, address_of
from tests.mesh.local import ROOT, command, submit, until
from tests.mesh.test_same_bits import plain, sha256

needs_hosts = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(240)]

STEADY = ROOT / "tests" / "mesh" / "scripts" / "steady.py"
EPOCHS = "20"
LISTEN = """
import socket, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("", 9999))
heard.settimeout(float(sys.argv[1]))
print("bound", flush=True)
print(heard.recv(9))
"""
SPEAK = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", (sys.argv[1], 9999))
"""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Hosts]:
    """The cables of three hosts; nobody is at home."""
    made = Hosts(tmp_path / "hosts", 3, {1: 1})
    try:
        made.lay()
        for host in range(3):
            made.prepare(host)
        yield made
    finally:
        made.close()


def hears(network: Hosts, source: int, target: int) -> bool:
    """Whether a datagram arrives."""
    command = [*network.within(target), sys.executable, "-c", LISTEN, "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "bound\n"
        subprocess.run([*network.within(source), sys.executable, "-c", SPEAK, address_of(target)], check=False)
        return "hello" in listener.stdout.read()


@needs_hosts
def test_a_one_way_cut_is_one_way(network: Hosts) -> None:
    network.block(0, 1)
    assert [hears(network, 0, 1), hears(network, 1, 0), hears(network, 0, 2)] == [False, True, True]
    network.unblock(0, 1)
    until(lambda: hears(network, 0, 1), 5, "it has found the other again")


@needs_hosts
def test_a_partition_is_between_groups(network: Hosts) -> None:
    network.part([0, 2], [1])
    assert [hears(network, 0, 2), hears(network, 0, 1), hears(network, 1, 2)] == [True, False, False]
    network.heal()
    until(lambda: hears(network, 1, 2), 5, "they have found each other again")


@needs_hosts
def test_a_pulled_cable_and_a_slow_one(network: Hosts) -> None:
    network.unplug(1)
    assert not hears(network, 1, 0)
    network.plug(1)
    network.slow(1, 10)
    before = network.sent_bytes(1)
    until(lambda: hears(network, 1, 0), 5, "it has found the other again")
    assert network.sent_bytes(1) > before
    shaped = subprocess.run(
        ["tc", "qdisc", "show", "dev", network.cable(1)], capture_output=True, text=True, check=True
    )
    assert "rate 10Mbit" in shaped.stdout
    network.fast(1)


@needs_hosts
def test_a_full_disk_is_full_until_it_is_emptied(network: Hosts) -> None:
    home = network.node(1)
    disk = faults.Disk(home)
    assert disk.fill() > 500_000
    with pytest.raises(OSError, match="No space left"):
        (home / "more").write_bytes(bytes(100_000))
    disk.empty()
    (home / "more").write_bytes(bytes(100_000))


@pytest.mark.skipif(faults.Clock.WHY_NOT is not None, reason=str(faults.Clock.WHY_NOT))
def test_a_clock_jumps_for_those_who_have_it(tmp_path: Path) -> None:
    clock = faults.Clock(tmp_path)
    clock.jump(86_400)
    told = subprocess.check_output([sys.executable, "-c", "import time; print(time.time())"], env=clock.environment)
    assert float(told) - time.time() > 86_000


def test_a_paused_process_goes_on_and_a_dead_one_is_said_to_be_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert faults.pause(child.pid, 0.1)
        assert psutil.Process(child.pid).status() != psutil.STATUS_STOPPED
        assert faults.kill(child.pid)
        child.wait()
        assert not faults.kill(child.pid)


def says_no_quorum(hosts: Hosts, index: int) -> bool:
    status = hosts.status(index)
    return not status["quorum"] and "no quorum" in (status["quorum_reason"] or "")


def follows(hosts: Hosts, index: int) -> bool:
    status = dmi.connect(hosts.node(index)).status()
    return status["quorum"] and {member["state"] for member in status["members"]} == {"alive"}


@pytest.mark.deep
@needs_hosts
def test_a_partition_in_mid_training_changes_no_bit(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path / "hosts", 5)
    try:
        hosts.up()
        job = submit(hosts, STEADY, "--workers", 2, "--servers", 2, "--", EPOCHS)
        node = dmi.connect(hosts.node(0))
        until(lambda: (node.job(job).status()["step"] or 0) >= 30, 90, "the job is beyond some checkpoints")
        plays = faults.place(hosts, faults.roles(node, job, "worker")[0]["node"])
        minority = [plays, (plays + 1) % 5]
        majority = [index for index in range(5) if index not in minority]
        outside = dmi.connect(hosts.node(majority[0]))
        pids = [hosts.pid(index) for index in minority]

        hosts.part(majority, minority)
        until(lambda: all(says_no_quorum(hosts, index) for index in minority), 15, "the minority has no quorum")
        until(lambda: outside.job(job).status()["generation"] > 1, 60, "the majority has placed the job again")

        hosts.heal()
        until(lambda: all(follows(hosts, index) for index in range(5)), 20, "the minority follows again")
        assert [hosts.pid(index) for index in minority] == pids
        assert outside.job(job).wait()["state"] == "succeeded"
        command("export", job, tmp_path / "mesh.safetensors", home=hosts.node(plays))
        expected = plain(tmp_path / "plain.safetensors", str(STEADY.relative_to(ROOT)), EPOCHS)
        assert sha256(tmp_path / "mesh.safetensors") == expected
    finally:
        hosts.close()
