"""Where one node keeps what it knows: the files of its home directory."""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dmi_protocol.identity import BlobHash, JobId
from dmi_protocol.messages.roles import RoleKey

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


_LOCK_S = 2.0
"""Who only asks whether a daemon runs holds the lock for a moment, and is waited for."""
_PAUSE_S = 0.005
_umasks: list[int] = []


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """What this process writes meanwhile is its owner's alone. Role processes begin with the umask that was before: a script's
    files are its user's matter."""
    _umasks.append(os.umask(0o077))
    try:
        yield
    finally:
        os.umask(_umasks.pop())


def usual_umask() -> int | None:
    """That of this process before it kept its files private; None while it does not."""
    return _umasks[0] if _umasks else None


class HomeBusyError(Exception):
    """Another daemon runs on this home. The text says which."""


class Home:
    """Paths only, and the lock that keeps a second daemon out."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.config = self.root / "config.toml"
        self.key = self.root / "node.key_secret"
        self.public_key = self.root / "node.pub"
        self.state = self.root / "state.sqlite"
        self.blobs = self.root / "blobs"
        self.jobs = self.root / "jobs"
        self.socket = self.root / "control.sock"
        self.pid = self.root / "pid"
        self.crashes = self.root / "crashes.json"
        self._lock: TextIO | None = None

    def make(self) -> None:
        """Make what is missing. Only the owner may look inside, whatever was there, and whatever others were let do by whoever
        made it: what jobs are given, their variables among it, lies in these files."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.root, self.blobs, self.jobs):
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.stat().st_mode & 0o077:
                directory.chmod(0o700)
        for path in (*self.root.iterdir(), *self.blobs.iterdir()):
            is_ours = (
                path.is_file() and not path.is_symlink() and path != self.key
            )  # a key that others could read is refused
            if is_ours and path.stat().st_mode & 0o077:
                with contextlib.suppress(PermissionError):  # a configuration that root has written, say
                    path.chmod(0o600)

    def lock(self) -> None:
        """Keep other daemons out until ``unlock``, or the end of this process. Raises ``HomeBusyError``."""
        file = self.pid.open("a+")
        if not _locked(file):
            file.seek(0)
            owner = file.read().split()[:1]
            file.close()
            raise HomeBusyError(f"{self.root} is in use by process {' '.join(owner) or 'unknown'}; stop it first")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Let another daemon in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def blob(self, blob: BlobHash) -> Path:
        """Where a blob lies."""
        return self.blobs / blob

    def job(self, job: JobId) -> Path:
        """What is kept of a job. Its name is somebody's choice: one that could lead elsewhere is replaced by its hash."""
        return self.jobs / (job if _PLAIN.fullmatch(job) else hashlib.sha256(job.encode()).hexdigest())

    def role(self, role: RoleKey) -> Path:
        """What is kept of one role process: ``work/`` (its directory), ``log``, ``ledger.jsonl``."""
        return self.job(role.job) / str(role.generation) / f"{role.role}-{role.index}"


def _locked(file: TextIO) -> bool:
    """A daemon holds its lock for good, and a question for microseconds."""
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True


def owner_of(root: Path) -> int | None:
    """The process that runs on the home at ``root``: the one that holds its lock."""
    try:
        with (root / "pid").open("r+") as file:
            pid = int(file.read().split()[0])
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may ask at the same time
            except BlockingIOError:
                return pid
    except (OSError, ValueError, IndexError):
        return None
    return None
