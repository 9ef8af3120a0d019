"""A mesh of real daemons under one directory, driven through the command as a user would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
Seen = TypeVar("Seen")


def until(look: Callable[[], Seen], seconds: float, what: str) -> Seen:
    """The first true thing that ``look`` gives. Fails with ``what`` once ``seconds`` are over."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}; last seen {seen!r}")
        pause.wait(0.01)


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without any setting of DMI, and with ``extra``."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DMI_")} | extra


def command(
    *arguments: object, home: Path, seconds: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``dmi-node`` with ``arguments`` against the node at ``home``."""
    done = subprocess.run(
        [BIN / "dmi-node", *map(str, arguments)],
        env=clean_environment(DMI_HOME=str(home)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert not check or done.returncode == 0, f"dmi-node {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def lives(process: psutil.Process) -> bool:
    """One that has ended and that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class LocalMesh:
    """``size`` nodes, each with its home, key, address and port. ``close`` leaves no process behind."""

    def __init__(self, home: Path, size: int) -> None:
        self.home = home
        self.size = size
        self._children: list[subprocess.Popen[bytes]] = []
        self.pids: set[int] = set()
        self.environments: dict[int, dict[str, str]] = {}
        """What a node that is started from now on has in its environment besides."""

    def up(self) -> None:
        """Start all nodes and wait until they are ready."""
        command("up", "--nodes", self.size, "--home", self.home, "--detach", home=self.home, seconds=60)
        self.pids |= {self.pid(index) for index in range(self.size)}

    def node(self, index: int) -> Path:
        """The home of the ``index``-th node."""
        return self.home / f"n{index}"

    def pid(self, index: int) -> int:
        """The process of the ``index``-th node, as its home says."""
        return int((self.node(index) / "pid").read_text().split()[0])

    def status(self, index: int = 0) -> dict[str, Any]:
        """What the ``index``-th node says of the mesh, through the command; with or without a quorum."""
        done = command("status", "--json", home=self.node(index), check=False)
        assert done.returncode in {0, 1}, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def kill(self, index: int) -> None:
        """End the daemon as a power cut would."""
        os.kill(self.pid(index), signal.SIGKILL)

    def prepare(self, index: int) -> None:
        """Make what a new node needs before it starts."""
        self.node(index).mkdir(mode=0o700)

    def within(self, index: int) -> list[str]:
        """What stands before a node's command, to run it where it belongs."""
        return []

    def address(self, index: int) -> str:
        """Where a node that is added listens."""
        return f"127.0.{1 + index // 250}.{1 + index % 250}:0"

    def add(self) -> int:
        """One node more, by invitation; gives its number. It is on its way in."""
        token = json.loads(command("invite", "--json", home=self.node(0)).stdout)["token"]
        index, self.size = self.size, self.size + 1
        self.prepare(index)
        self.start(index, "--name", f"n{index}", "--listen", self.address(index), "--join", token)
        return index

    def start(self, index: int, *flags: str) -> int:
        """Bring a killed node back, as it was; gives its process. Only a new node needs ``flags``."""
        with (self.node(index) / "daemon.log").open("ab") as log:
            child = subprocess.Popen(
                [*self.within(index), BIN / "dmi-node", "run", "--home", self.node(index), *flags],
                env=clean_environment(**self.environments.get(index, {})),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.adopt(child)
        return child.pid

    def adopt(self, child: "subprocess.Popen[bytes]") -> None:
        """A daemon that was started for this mesh: ``close`` ends it, too."""
        self._children.append(child)
        self.pids.add(child.pid)

    def processes(self) -> list[psutil.Process]:
        """The daemons and all that descends from them."""
        found = []
        for pid in self.pids:
            try:
                daemon = psutil.Process(pid)
                found += [daemon, *daemon.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        """``down``, and a refusal to leave anything running."""
        before = self.processes()
        command("down", "--home", self.home, home=self.home, seconds=60, check=False)
        for child in self._children:
            child.terminate()
            child.wait(timeout=30)
        end = time.monotonic() + 10
        while (alive := [process for process in before if lives(process)]) and time.monotonic() < end:
            threading.Event().wait(0.01)
        for process in alive:
            process.kill()
        assert not alive, f"outlived `down`: {alive}"
        until(lambda: not self._left(), 10, f"nobody works in {self.home} any more")

    def _left(self) -> list[psutil.Process]:
        """Processes that work in a node's directories, also those whose daemon was killed."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(self.home):
                    found.append(process)
        return found


def submit(mesh: LocalMesh, *arguments: object, via: int = 0) -> str:
    """Submit a script and give the job's id."""
    said = command("submit", "--json", *arguments, home=mesh.node(via)).stdout
    return str(json.loads(said.strip().splitlines()[-1])["id"])


def job(mesh: LocalMesh, identity: str, via: int = 0) -> dict[str, Any]:
    """The job's object in ``status --json``."""
    found: dict[str, Any] = next(j for j in mesh.status(via)["jobs"] if j["id"] == identity)
    return found
