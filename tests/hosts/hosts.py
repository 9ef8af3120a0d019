"""A mesh of real hosts: each node in its own network namespace, on its own address, joined by invitation.

All of it is made with ip(8) and tc(8), as root. Each host has one cable to a bridge of its own making, so nothing here
touches the machine's network. There is no packet filter on small kernels, so a one-way cut is a wrong neighbour: the
frames of one host to another go to a hardware address that nobody has, and are lost without a word.
"""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import dmi
from dmi.errors import DmiError
from tests.mesh.local import LocalMesh, until

WHY_NOT = None if os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc") else "needs root, ip(8) and tc(8)"
"""Why there can be no hosts here; None where there can."""
_NUMBERS = itertools.count()
_PORT = 7600
_NOBODY = "02:00:00:00:00:fe"


def do(*command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


def address_of(host: int) -> str:
    """The one address of a host."""
    return f"10.213.0.{host + 1}"


class Hosts(LocalMesh):
    """``size`` nodes n0, n1, ..., each in a namespace; homes named in ``disk_mib`` are small disks of their own."""

    def __init__(self, home: Path, size: int, disk_mib: Mapping[int, int] | None = None) -> None:
        super().__init__(home, size)
        self.mark = f"dmi{os.getpid() % 100_000}-{next(_NUMBERS) % 100}"  # with v12 behind it, what a link may be named
        self._disk_mib = disk_mib or {}
        self._undo: list[tuple[str, ...]] = []
        self._bridges = [self.mark]

    # The mesh

    def up(self) -> None:
        """Make the network, start all nodes, and wait until each sees all others."""
        self.lay()
        size, self.size = self.size, 1
        self.prepare(0)
        self.start(0, "--name", "n0", "--listen", self.address(0))
        until(lambda: self.has(0, 1), 30, "the founder answers")
        while self.size < size:
            self.add()
        until(lambda: all(self.has(host, size) for host in range(size)), 60, "all hosts see one another")

    def has(self, via: int, size: int) -> bool:
        """Whether a node has a quorum, ``size`` members that are alive, and all the voters that so many can have."""
        try:
            seen = dmi.connect(self.node(via)).status()
        except DmiError:
            return False
        voters = sum(member["voter"] for member in seen["members"])
        wanted = size if size % 2 else size - 1
        return (
            bool(seen["quorum"])
            and [m["state"] for m in seen["members"]] == ["alive"] * size
            and voters >= min(5, wanted)
        )

    def prepare(self, index: int) -> None:
        """See ``LocalMesh.prepare``: its cable, its home, its disk."""
        self._plug_in(index)
        super().prepare(index)
        if index in self._disk_mib:
            home = str(self.node(index))
            size = f"size={self._disk_mib[index]}m,mode=700"
            self._do(("mount", "-t", "tmpfs", "-o", size, "tmpfs", home), ("umount", home))

    def within(self, index: int) -> list[str]:
        """See ``LocalMesh.within``."""
        return ["ip", "netns", "exec", self.space(index)]

    def address(self, index: int) -> str:
        """See ``LocalMesh.address``."""
        return f"{address_of(index)}:{_PORT}"

    def close(self) -> None:
        """End every process, then take the network and the small disks away."""
        try:
            super().close()
        finally:
            for undo in reversed(self._undo):
                do(*undo)

    # The network

    def lay(self) -> None:
        """The bridge that ``prepare`` plugs hosts into."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._do(("ip", "link", "add", self.mark, "type", "bridge"), ("ip", "link", "del", self.mark))
        do("ip", "link", "set", self.mark, "up")

    def space(self, host: int) -> str:
        """The name of a host's namespace."""
        return f"{self.mark}h{host}"

    def cable(self, host: int) -> str:
        """The name of the bridge's end of a host's cable."""
        return f"{self.mark}v{host}"

    def unplug(self, host: int) -> None:
        """Pull the network cable of a host. Nobody is told."""
        do("ip", "link", "set", self.cable(host), "down")

    def plug(self, host: int) -> None:
        """Put it back."""
        do("ip", "link", "set", self.cable(host), "up")

    def block(self, source: int, target: int) -> None:
        """A one-way cut: what ``source`` sends to ``target`` is lost, the other direction works."""
        where = (address_of(target), "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        do("ip", "-n", self.space(source), "neigh", "replace", *where)

    def unblock(self, source: int, target: int) -> None:
        """The end of a one-way cut."""
        do("ip", "-n", self.space(source), "neigh", "del", address_of(target), "dev", "eth0")

    def part(self, *groups: Iterable[int]) -> None:
        """Each group on a bridge of its own: whoever is in none stays on the first."""
        for number, group in enumerate(groups):
            if number == len(self._bridges):
                self._bridges.append(f"{self.mark}g{number}")
                self._do(
                    ("ip", "link", "add", self._bridges[number], "type", "bridge"),
                    ("ip", "link", "del", self._bridges[number]),
                )
                do("ip", "link", "set", self._bridges[number], "up")
            for host in group:
                do("ip", "link", "set", self.cable(host), "master", self._bridges[number])

    def heal(self) -> None:
        """Everybody on one bridge again."""
        self.part(range(self.size))

    def slow(self, host: int, mbit: int) -> None:
        """Shape the cable of a host, in both directions."""
        rate = ("root", "tbf", "rate", f"{mbit}mbit", "burst", "32kb", "latency", "400ms")
        do("tc", "qdisc", "replace", "dev", self.cable(host), *rate)
        do("tc", "-n", self.space(host), "qdisc", "replace", "dev", "eth0", *rate)

    def fast(self, host: int) -> None:
        """The end of ``slow``."""
        do("tc", "qdisc", "del", "dev", self.cable(host), "root")
        do("tc", "-n", self.space(host), "qdisc", "del", "dev", "eth0", "root")

    def sent_bytes(self, host: int) -> int:
        """How much a host has put on its cable, behind any shaping."""
        return int(Path(f"/sys/class/net/{self.cable(host)}/statistics/rx_bytes").read_text())

    def _plug_in(self, host: int) -> None:
        space, cable = self.space(host), self.cable(host)
        self._do(("ip", "netns", "add", space), ("ip", "netns", "del", space))
        make = ("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._do(make, ("ip", "link", "del", cable))  # a namespace that still has sockets outlives its name
        do("ip", "link", "set", cable, "master", self.mark, "up")
        do("ip", "-n", space, "addr", "add", f"{address_of(host)}/24", "dev", "eth0")
        do("ip", "-n", space, "link", "set", "eth0", "up")
        do("ip", "-n", space, "link", "set", "lo", "up")

    def _do(self, make: tuple[str, ...], undo: tuple[str, ...]) -> None:
        do(*make)
        self._undo.append(undo)
