"""All role processes of this host."""

import asyncio
import errno
import logging
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs, WrongHashError
from dmi_node.storage.bundles import BadBundleError, keep_written, unpack
from dmi_node.supervision.fork_server import ForkServer
from dmi_node.supervision.process import RoleProcess, kept
from dmi_node.supervision.shares import Shares
from dmi_node.tasks import Tasks
from dmi_protocol.effects import StartRole, StopRole, TellRole
from dmi_protocol.events import RoleHappened
from dmi_protocol.identity import BlobHash, JobId
from dmi_protocol.jobs.hosting import CANNOT_START_HERE, GATEWAY_GRACE_MS, not_here
from dmi_protocol.messages.roles import (
    BatchLaunch,
    Bound,
    Exited,
    Failed,
    Fleet,
    Followers,
    PartWritten,
    Published,
    ReplicaLaunch,
    RoleEvent,
    RoleKey,
    Slices,
    Started,
    TrainingLaunch,
    Written,
)

_JUST_NOW_S = 5.0
"""A role has noticed by then that one of its processes has ended."""
_logger = logging.getLogger("dmi.roles")
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


class Supervisor:
    """Does what the peer wants done to role processes, and gives it what they say.

    Nothing that goes wrong with one job ends the daemon: whatever preparing, starting, watching, telling or ending it raises is
    that job's trouble on this host, and said as such. Only the queue of the peer's events is outside of that.
    """

    def __init__(self, home: Home, blobs: Blobs, tasks: Tasks, happened: Callable[[RoleHappened], None]) -> None:
        self._home = home
        self._blobs = blobs
        self._tasks = tasks
        self._happened = happened
        self._processes: dict[RoleKey, RoleProcess] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._fork_server = ForkServer(home, tasks)
        self._shares = Shares(tasks, lambda: self._fork_server.pid, self._exceeds)
        self._unproven: dict[RoleKey, str] = {}
        """Processes whose interpreter somebody else has chosen, and that have not said anything yet."""
        self._excesses: dict[RoleKey, tuple[float, str]] = {}
        """When a process of a role was ended last, because it had too much memory, and how much that was."""

    def start(self, effect: StartRole) -> None:
        """Unpack, spawn, listen."""
        try:
            self._start(effect)
        except Exception as error:  # noqa: BLE001 (see the class)
            self._forget(effect.role)
            self._cannot(effect.role, error)

    def _start(self, effect: StartRole) -> None:
        directory, name = self._home.role(effect.role), effect.launch.bundle_hash
        bundle = self._blobs.path(name) if name else None
        files = tuple(str(self._blobs.path(blob)) for blob in effect.launch.needs)
        launch = replace(effect.launch, directory=str(directory), bundle=str(bundle or ""), files=files)
        more = self._fork_server.ready(kept(os.environ)) if isinstance(launch, BatchLaunch | ReplicaLaunch) else {}
        process = RoleProcess(launch, partial(self._pass_on, effect.role), more)
        self._processes[effect.role] = process
        unit = effect.role.job if isinstance(launch, TrainingLaunch) else f"{effect.role.job}/{effect.role.name}"
        if isinstance(launch, TrainingLaunch) and launch.python is not None:
            self._unproven[effect.role] = launch.python
        self._shares.begin(effect.role, unit, launch.share, directory)
        life = self._tasks.start(self._live(effect.role, process, bundle), f"{effect.role.job} {effect.role.role}")
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)

    async def _live(self, role: RoleKey, process: RoleProcess, bundle: Path | None) -> None:
        """The process, or why there is none; every life ends with one ``Exited``."""
        try:
            await asyncio.to_thread(_prepare, self._home.role(role), bundle)
            if process.is_wanted:
                await process.run()
            else:
                await self._pass_on(role, Exited(0, signal.SIGTERM))
        except Exception as error:  # noqa: BLE001 (see the class)
            self._cannot(role, error)
        finally:
            self._forget(role)

    def _forget(self, role: RoleKey) -> None:
        self._processes.pop(role, None)
        self._excesses.pop(role, None)
        self._unproven.pop(role, None)
        try:
            self._shares.end(role)
        except Exception:
            _logger.exception("the share of %s cannot be given back", role.job)

    def _cannot(self, role: RoleKey, error: Exception) -> None:
        """There is no process, or none any more, and that is what is known of it."""
        python = self._unproven.pop(role, None)
        match error:
            case BadBundleError():
                kind, why = "cannot-start", f"the job's files cannot be unpacked: {error}"
            case OSError() if python is not None and error.errno not in _DISK:
                kind, why = "cannot-start", f"its interpreter {python} cannot be started: {error}"
            case OSError():
                is_disk = error.errno in _DISK
                kind = "disk" if is_disk else CANNOT_START_HERE
                why = f"the job's files cannot be unpacked, or its process started: {error}"
            case _:
                kind, why = CANNOT_START_HERE, "".join(traceback.format_exception(error)).rstrip()
                _logger.exception("%s of %s cannot be run here", role.name, role.job)
        for event in not_here(why, kind):
            self._happened(RoleHappened(role, event))

    async def _fits(self, role: RoleKey) -> bool:
        """A role that needs more memory than it was promised from its beginning is never of use: it is ended, with what it has
        started."""
        await self._shares.look()
        process, why = self._processes.get(role), self._excess(role)
        if process is not None and why is not None:
            self._happened(RoleHappened(role, Failed("over-memory", why)))
            process.kill()
        return why is None

    def _exceeds(self, role: RoleKey, pid: int, why: str) -> None:
        """The role itself misses another one of its processes, and does not know why it has ended."""
        self._excesses[role] = asyncio.get_running_loop().time(), why
        process = self._processes.get(role)
        if process is not None and process.pid == pid:
            self._happened(RoleHappened(role, Failed("over-memory", why)))

    def _excess(self, role: RoleKey) -> str | None:
        """Why a process of it was ended just now."""
        at, why = self._excesses.get(role, (0.0, ""))
        return why if why and asyncio.get_running_loop().time() - at < _JUST_NOW_S else None

    async def _pass_on(self, role: RoleKey, event: RoleEvent) -> None:
        """What it has written is taken into the blobs before anybody hears of it."""
        if isinstance(event, Bound):
            self._unproven.pop(role, None)
        if isinstance(event, Exited) and (python := self._unproven.pop(role, None)) is not None:
            last = await asyncio.to_thread(_last_line, self._home.role(role) / "log")
            told = f"{python} cannot run a worker here: {last}"
            self._happened(RoleHappened(role, Failed("cannot-start", told, starting=True)))
        if isinstance(event, Started):
            self._shares.started(role, event.pid)
        if isinstance(event, Bound) and not await self._fits(role):
            return
        if isinstance(event, Failed) and (why := self._excess(role)) is not None:
            event = replace(event, kind="over-memory", text=f"{event.text.rstrip()}: {why}")
        if isinstance(event, Written):
            try:
                await asyncio.to_thread(self._take_in, self._home.role(role), event)
            except (OSError, ValueError, WrongHashError) as error:
                event = Failed("disk", f"{_what(event)} could not be kept: {error}")
        elif isinstance(event, Published):
            try:
                for path, file in zip(event.paths, event.content.files, strict=True):
                    await asyncio.to_thread(self._adopt, self._home.role(role), path, file.blob)
            except (OSError, ValueError, WrongHashError) as error:
                _logger.warning("a version of %s is not published: %s", event.name[:80], error)
                return
        self._happened(RoleHappened(role, event))

    def _take_in(self, directory: Path, event: Written) -> None:
        self._adopt(directory, event.path, event.blob)

    def _adopt(self, directory: Path, given: str, blob: BlobHash) -> None:
        """Job code names the file, so it must be one of its own."""
        path = Path(given).resolve()
        if not path.is_relative_to(directory.resolve()):
            raise WrongHashError(f"{given[:200]!r} is no file of this role")
        self._blobs.adopt(path, blob)

    def tell(self, effect: TellRole) -> None:
        """Hand it over. Who cannot be told what the others were told is of no use."""
        try:
            self._tell(effect)
        except Exception as error:  # noqa: BLE001 (see the class)
            self._ends(effect.role, "told", error)

    def _ends(self, role: RoleKey, what: str, error: Exception) -> None:
        """A process that cannot be dealt with ends: its life says that it did."""
        _logger.exception("%s of %s cannot be %s", role.name, role.job, what)
        if role in self._processes:
            self._happened(RoleHappened(role, Failed(CANNOT_START_HERE, f"it cannot be {what}: {error!r}")))
            self._processes[role].kill()

    def _tell(self, effect: TellRole) -> None:
        message = effect.message
        if isinstance(message, Slices) and message.packs:
            message = replace(message, files=tuple(str(self._blobs.path(pack)) for pack in message.packs))
        if isinstance(message, Fleet) and message.versions is not None and effect.role.role == "replica":
            files = [[file.blob for file in ref.content.files_of(message.stage)] for ref in message.versions.all]
            message = replace(message, files=tuple(tuple(str(self._blobs.path(b)) for b in blobs) for blobs in files))
        if isinstance(message, Followers):
            needed = [[file.blob for file in follower.content.files] for follower in message.followers]
            message = replace(message, files=tuple(tuple(str(self._blobs.path(b)) for b in blobs) for blobs in needed))
        if effect.role in self._processes:
            self._processes[effect.role].tell(message)

    def stop(self, effect: StopRole) -> None:
        """End one."""
        try:
            if effect.role in self._processes:
                self._processes[effect.role].stop(effect.grace_ms)
        except Exception as error:  # noqa: BLE001 (see the class)
            self._ends(effect.role, "stopped", error)

    def forget(self, job: JobId) -> None:
        """A job has ended: what it was given may go; logs, ledgers and the files that its script wrote stay."""
        self._tasks.start(self._clear(job), f"forget {job}")

    async def _clear(self, job: JobId) -> None:
        try:
            await asyncio.to_thread(_keep_results, self._home.job(job))
        except Exception:
            _logger.exception("what is left of %s cannot be cleared away", job)

    async def close(self, within_s: float) -> None:
        """End all, and wait: for gateways as long as somebody takes their last answers."""
        gateways = [role for role in self._processes if role.role == "gateway"]
        for role in list(self._processes):
            self.stop(StopRole(role, GATEWAY_GRACE_MS if role in gateways else round(within_s * 500)))
        if self._lives:
            await asyncio.wait(self._lives, timeout=max(within_s, GATEWAY_GRACE_MS / 1000) if gateways else within_s)
        for process in list(self._processes.values()):
            process.kill()
        await self._fork_server.close()


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:400] if lines else "it ended without a word"


def _what(event: Written) -> str:
    return "a part of the checkpoint" if isinstance(event, PartWritten) else "the result of a slice"


def _prepare(directory: Path, bundle: Path | None) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if bundle is None:
        (directory / "work").mkdir(parents=True)
    else:
        unpack(bundle, directory / "work")


def _keep_results(job: Path) -> None:
    for work in job.glob("*/*/work"):
        with suppress(OSError):  # a script may have left a directory that nobody can read
            keep_written(work)
