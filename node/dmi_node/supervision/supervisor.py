"""All role processes of this host."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs, WrongHashError
from dmi_node.storage.bundles import BadBundleError, unpack
from dmi_node.supervision.process import RoleProcess
from dmi_node.tasks import Tasks
from dmi_protocol.effects import StartRole, StopRole, TellRole
from dmi_protocol.events import RoleHappened
from dmi_protocol.identity import JobId
from dmi_protocol.messages.roles import Assignment, Exited, Failed, PartWritten, RoleEvent, RoleKey


class Supervisor:
    """Does what the peer wants done to role processes, and gives it what they say."""

    def __init__(self, home: Home, blobs: Blobs, tasks: Tasks, happened: Callable[[RoleHappened], None]) -> None:
        self._home = home
        self._blobs = blobs
        self._tasks = tasks
        self._happened = happened
        self._processes: dict[RoleKey, RoleProcess] = {}
        self._lives: set[asyncio.Task[None]] = set()

    def start(self, effect: StartRole) -> None:
        """Unpack, spawn, listen."""
        life = self._tasks.start(self._live(effect.role, effect.assignment), f"{effect.role.job} {effect.role.role}")
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)

    async def _live(self, role: RoleKey, assignment: Assignment) -> None:
        directory = self._home.role(role)
        bundle = self._blobs.path(assignment.bundle_hash)
        assignment = replace(assignment, directory=str(directory), bundle=str(bundle))
        try:
            await asyncio.to_thread(_prepare, directory, bundle)
        except (OSError, BadBundleError) as error:
            self._happened(
                RoleHappened(
                    role, Failed("cannot-start", f"the job's files cannot be unpacked: {error}", starting=True)
                )
            )
            self._happened(RoleHappened(role, Exited(1, 0)))
            return
        said: asyncio.Queue[RoleEvent] = asyncio.Queue()
        process = RoleProcess(assignment, said.put_nowait)
        self._processes[role] = process
        life = asyncio.ensure_future(process.run())
        try:
            while not isinstance(event := await self._next(said, life), Exited):
                await self._pass_on(role, event)
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            self._processes.pop(role, None)
        self._happened(RoleHappened(role, event))

    @staticmethod
    async def _next(said: asyncio.Queue[RoleEvent], life: "asyncio.Future[None]") -> RoleEvent:
        """The next thing that it says; a process that cannot even be spawned has ended."""
        get = asyncio.ensure_future(said.get())
        life.add_done_callback(lambda _: get.cancel() if said.empty() else None)
        try:
            return await get
        except asyncio.CancelledError:
            if not life.done():
                raise
            life.result()
            return Exited(1, 0)

    async def _pass_on(self, role: RoleKey, event: RoleEvent) -> None:
        """A part of a checkpoint is taken into the blobs before anybody hears of it."""
        if isinstance(event, PartWritten):
            try:
                await asyncio.to_thread(self._blobs.adopt, Path(event.path), event.blob)
            except (OSError, WrongHashError) as error:
                event = Failed("disk", f"a part of the checkpoint could not be kept: {error}")
        self._happened(RoleHappened(role, event))

    def tell(self, effect: TellRole) -> None:
        """Hand the roster over."""
        if effect.role in self._processes:
            self._processes[effect.role].tell(effect.roster)

    def stop(self, effect: StopRole) -> None:
        """End one."""
        if effect.role in self._processes:
            self._processes[effect.role].stop(effect.grace_ms)

    def forget(self, job: JobId) -> None:
        """The work directories of a job that has ended may go; logs and ledgers stay."""
        self._tasks.start(asyncio.to_thread(_remove_work, self._home.job(job)), f"forget {job}")

    async def close(self, within_s: float) -> None:
        """End all, and wait."""
        for process in list(self._processes.values()):
            process.stop(round(within_s * 500))
        if self._lives:
            await asyncio.wait(self._lives, timeout=within_s)
        for process in list(self._processes.values()):
            process.kill()


def _prepare(directory: Path, bundle: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    unpack(bundle, directory / "work")


def _remove_work(job: Path) -> None:
    for work in job.glob("*/*/work"):
        shutil.rmtree(work, ignore_errors=True)
