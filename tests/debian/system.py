"""One Debian system that is booted with systemd-nspawn, on a bridge in a network namespace that has nothing else in it.

Its disk is an overlay over one that all of them share. Cutting its power is killing its first process: nothing is told, nothing
is synced, and what was written lies in the page cache of a kernel that lives on, which is more than a real power cut would leave.
"""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

BOOT_S = 60.0
SECONDS = 300.0
_LOOK_S = 0.1


def do(*command: str | Path, seconds: float = 60) -> str:
    """Run a command on this machine that must succeed; gives what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def until(look: Callable[[], object], seconds: float, what: str) -> float:
    """Look again and again until there is something; gives how long it took."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if look():
            return time.monotonic() - begun
        time.sleep(_LOOK_S)
    raise RuntimeError(f"not within {seconds:g} s: {what}")


class Bridge:
    """A network of its own: a namespace with a bridge."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def __enter__(self) -> "Bridge":
        do("ip", "netns", "add", self.name)
        do("ip", "-n", self.name, "link", "set", "lo", "up")
        do("ip", "-n", self.name, "link", "add", "br0", "type", "bridge")
        do("ip", "-n", self.name, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        do("ip", "netns", "del", self.name)


class System:
    """``name`` with its one address. ``wheels`` is a folder that it can read, at ``/wheels``."""

    def __init__(self, name: str, address: str, bridge: Bridge, root: Path, wheels: Path) -> None:
        self.name = name
        self.address = address
        self._bridge = bridge
        self._root = root
        self._wheels = wheels
        self._machine: subprocess.Popen[bytes] | None = None

    @contextmanager
    def disk(self, base: Path, room: Path) -> Iterator["System"]:
        """Its own disk over ``base``, kept in ``room``; it is off when this ends."""
        upper, work = room / "upper", room / "work"
        for path in (upper, work, self._root):
            path.mkdir(parents=True)
        do("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={base},upperdir={upper},workdir={work}", self._root)
        try:
            (self._root / "etc/hostname").write_text(f"{self.name}\n")
            network = f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\nLinkLocalAddressing=no\n"
            (self._root / "etc/systemd/network/10-host0.network").write_text(network)
            yield self
        finally:
            self.cut_power()
            do("umount", self._root)

    def boot(self) -> float:
        """Power on; gives how long it takes until the system runs, in seconds."""
        log = (self._root.parent / "console").open("ab")
        with log:
            self._machine = subprocess.Popen(
                [
                    *(
                        "nsenter",
                        f"--net={self._bridge.path}",
                        "systemd-nspawn",
                        "--quiet",
                        "--register=no",
                        "--keep-unit",
                    ),
                    *("--boot", "--console=pipe", "--network-bridge=br0", f"--machine={self.name}"),
                    *(f"--bind-ro={self._wheels}:/wheels", "--directory", self._root),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.until_up()

    def until_up(self) -> float:
        """Until all that starts at its boot has started."""
        states = {"running", "degraded"}
        return until(
            lambda: self.try_("systemctl is-system-running").stdout.strip() in states, BOOT_S, f"{self.name} is up"
        )

    def _first_process(self) -> int | None:
        """The id, out here, of what is process 1 in there."""
        if self._machine is None or self._machine.poll() is not None:
            return None
        children = psutil.Process(self._machine.pid).children()
        return children[0].pid if children else None

    def try_(self, command: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """A line of shell as root, there."""
        pid = self._first_process()
        if pid is None:
            return subprocess.CompletedProcess(command, 255, "", "it is off")
        enter = ("nsenter", f"--target={pid}", "--all", f"--root=/proc/{pid}/root", f"--wd=/proc/{pid}/root/root")
        environment = (
            "env",
            "-i",
            "HOME=/root",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_NO_INDEX=1",
            "PIP_FIND_LINKS=/wheels",
        )
        return subprocess.run(
            [*enter, *environment, "bash", "-ec", command], capture_output=True, text=True, timeout=seconds, check=False
        )

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """The same, which must succeed; gives what it printed."""
        done = self.try_(command, seconds)
        if done.returncode:
            raise RuntimeError(
                f"{self.name}$ {command}: {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
            )
        return done.stdout

    def put(self, path: str, text: str) -> None:
        """A file there."""
        self.run(f"mkdir -p $(dirname {path}) && cat > {path} <<'END'\n{text}\nEND")

    def start(self, command: str) -> None:
        """Something that goes on there by itself."""
        self.run(f"setsid nohup bash -c {shlex.quote(command)} > /root/started 2>&1 < /dev/null &")

    def cut_power(self) -> None:
        """Off, at once."""
        if self._machine is None:
            return
        pid = self._first_process()
        if pid is not None:
            psutil.Process(pid).kill()  # the kernel ends everybody else in there with it
        self._machine.wait(timeout=30)
        self._machine = None

    def reboot(self) -> float:
        """As ``systemctl reboot`` does, in good order; gives how long until it is up again, in seconds."""
        begun, machine = time.monotonic(), self._machine
        assert machine is not None
        self.try_("systemctl reboot")
        until(
            lambda: machine.poll() is not None, BOOT_S, f"{self.name} goes down"
        )  # and it is for us to start it again
        self.boot()
        return time.monotonic() - begun
