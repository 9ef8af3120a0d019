"""Where one node keeps what it knows: the files of its home directory."""

import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import TextIO

from dmi_protocol.identity import BlobHash, JobId
from dmi_protocol.messages.roles import RoleKey

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


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
        """Make what is missing. Only the owner may look inside."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.blobs, self.jobs):
            directory.mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> None:
        """Keep other daemons out until ``unlock``, or the end of this process. Raises ``HomeBusyError``."""
        file = self.pid.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().split()[:1]
            file.close()
            raise HomeBusyError(
                f"{self.root} is in use by process {' '.join(owner) or 'unknown'}; stop it first"
            ) from None
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


def owner_of(root: Path) -> int | None:
    """The process that runs on the home at ``root``: the one that holds its lock."""
    try:
        with (root / "pid").open("r+") as file:
            pid = int(file.read().split()[0])
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return pid
    except (OSError, ValueError, IndexError):
        return None
    return None
