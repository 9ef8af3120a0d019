"""A mesh of real hosts: each node in its own network namespace, on its own address, joined by invitation."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.local import BIN, ROOT, clean_environment, until

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip(8)"),
]

HOSTS = 3


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


class Hosts:
    """Namespaces on one bridge, 10.213.0.1 and up."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mark = f"dmi{os.getpid() % 100_000}"
        self.daemons: list[subprocess.Popen[bytes]] = []
        self._made: list[tuple[str, ...]] = []

    def make(self) -> None:
        self._do(("link", "add", self.mark, "type", "bridge"), ("link", "del", self.mark))
        ip("link", "set", self.mark, "up")
        for host in range(HOSTS):
            space, veth = f"{self.mark}h{host}", f"{self.mark}v{host}"
            self._do(("netns", "add", space), ("netns", "del", space))
            ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", veth, "master", self.mark, "up")
            ip("-n", space, "addr", "add", f"10.213.0.{host + 1}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def _do(self, make: tuple[str, ...], undo: tuple[str, ...]) -> None:
        ip(*make)
        self._made.append(undo)

    def run(self, host: int, *flags: str) -> None:
        """Start the daemon of a host."""
        home = self.home / f"host{host}"
        home.mkdir()
        address = f"10.213.0.{host + 1}:7600"
        with (home / "daemon.log").open("wb") as log:
            command = [str(BIN / "dmi-node"), "run", "--home", str(home), "--name", f"host{host}"]
            child = subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    f"{self.mark}h{host}",
                    *command,
                    "--listen",
                    address,
                    "--advertise",
                    address,
                    *flags,
                ],
                env=clean_environment(),
                stdout=log,
                stderr=log,
            )
        self.daemons.append(child)

    def ask(self, host: int, *arguments: object) -> str:
        """Control sockets are files, so they reach across namespaces."""
        done = subprocess.run(
            [BIN / "dmi-node", *map(str, arguments), "--home", self.home / f"host{host}"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout

    def cut(self, host: int) -> None:
        """Pull the network cable of a host."""
        ip("link", "set", f"{self.mark}v{host}", "down")

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.terminate()
        for daemon in self.daemons:
            daemon.wait(timeout=20)
        for undo in reversed(self._made):
            ip(*undo)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        made.make()
        yield made
    finally:
        made.close()


def alive(hosts: Hosts, via: int) -> dict[str, str]:
    said = hosts.ask(via, "members", "--json")
    return {member["name"]: member["state"] for member in json.loads(said or "[]")}


def test_hosts_join_train_and_notice_a_pulled_cable(hosts: Hosts) -> None:
    hosts.run(0)
    until(lambda: len(alive(hosts, 0)) == 1, 20, "the founder answers")
    for host in (1, 2):
        token = json.loads(hosts.ask(0, "invite", "--json"))["token"]
        hosts.run(host, "--join", token)
    everybody = {f"host{host}": "alive" for host in range(HOSTS)}
    until(lambda: all(alive(hosts, host) == everybody for host in range(HOSTS)), 30, "three hosts see one another")
    until(lambda: sum(m["voter"] for m in json.loads(hosts.ask(0, "members", "--json"))) == 3, 20, "three voters")

    said = hosts.ask(1, "submit", ROOT / "tests" / "mesh" / "scripts" / "linear.py", "--wait", "--json")
    job = json.loads(said.splitlines()[0])["id"]
    assert "succeeded" in hosts.ask(2, "why", job)
    hosts.ask(2, "export", job, hosts.home / "weights.safetensors")
    assert (hosts.home / "weights.safetensors").stat().st_size > 0

    hosts.cut(2)
    until(lambda: alive(hosts, 0).get("host2") == "dead", 30, "host2 is dead to the others")
    until(lambda: json.loads(hosts.ask(1, "status", "--json"))["quorum"], 20, "two of three go on")
    until(lambda: not json.loads(hosts.ask(2, "status", "--json"))["quorum"], 20, "host2 knows that it has no quorum")
