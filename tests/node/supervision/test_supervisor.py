"""From an effect of the peer to a process and back, with bundles whose role is a script of the test's."""

import asyncio
import errno
import hashlib
import io
import signal
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from msgspec import structs

from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs
from dmi_node.supervision import process as module
from dmi_node.supervision import supervisor as supervisor_module
from dmi_node.supervision.shares import Shares
from dmi_node.supervision.supervisor import Supervisor
from dmi_node.tasks import Tasks
from dmi_protocol.effects import StartRole, StopRole, TellRole
from dmi_protocol.events import RoleHappened
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey
from dmi_protocol.jobs.hosting import CANNOT_START_HERE, RECOVERABLE
from dmi_protocol.messages.roles import (
    Assignment,
    Bound,
    Completed,
    Exited,
    Failed,
    PartWritten,
    RoleEvent,
    RoleKey,
    Roster,
    Started,
    TrainingLaunch,
)

pytestmark = pytest.mark.processes

SECONDS = 30
ROLE = RoleKey(JobId("job-000000"), 1, "worker", 0)
BEGIN = """
import hashlib, os, pathlib, time
from dmi_protocol.jobs.hosting import RECOVERABLE
from dmi_protocol.messages.roles import Completed, PartWritten, TrainingLaunch
from dmi_wire.child import Child
child = Child.inherit()
given = child.launch(TrainingLaunch)
child.start()
def part(path, data=b"part"):
    child.tell(PartWritten(3, 0, hashlib.sha256(data).hexdigest(), str(path), len(data), False))
"""


class Host:
    """A home, its supervisor, and what came of it."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.home.make()
        self.blobs = Blobs(self.home.blobs)
        self.tasks = Tasks()
        self.said: asyncio.Queue[RoleEvent] = asyncio.Queue()
        self.supervisor = Supervisor(self.home, self.blobs, self.tasks, self._take)

    def _take(self, happened: RoleHappened) -> None:
        assert happened.role == ROLE
        self.said.put_nowait(happened.event)

    def bundle(self, script: str) -> BlobHash:
        """A bundle in the blobs whose role is ``script``."""
        body, buffer = (BEGIN + script).encode(), io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:") as archive:
            member = tarfile.TarInfo("role_of_the_test.py")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
        return self.put(buffer.getvalue())

    def put(self, data: bytes) -> BlobHash:
        blob = BlobHash(hashlib.sha256(data).hexdigest())
        self.blobs.path(blob).write_bytes(data)
        return blob

    def start(self, blob: BlobHash, python: str | None = None, **env: str) -> None:
        launch = TrainingLaunch(
            key=ROLE,
            node=NodeId("0" * 16),
            node_name="n0",
            script="train.py",
            args=(),
            bundle="",
            directory="",
            leaves=None,
            threads=1,
            workers=1,
            shards=1,
            host="127.0.0.1",
            ports=(0, 0),
            bundle_hash=blob,
            python=python,
            env=tuple(env.items()),
        )
        self.supervisor.start(StartRole(ROLE, launch))

    async def until_gone(self) -> list[RoleEvent]:
        """All that happened until the role has ended."""
        events = [await self.said.get()]
        while not isinstance(events[-1], Exited):
            events.append(await self.said.get())
        return events


@pytest.fixture(autouse=True)
def no_real_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MODULES", {"worker": "role_of_the_test"})


@asynccontextmanager
async def host(root: Path) -> AsyncIterator[Host]:
    made = Host(root)
    try:
        async with asyncio.timeout(SECONDS):
            yield made
    finally:
        await made.tasks.close()


async def test_a_role_lives_in_a_directory_of_its_own(tmp_path: Path) -> None:
    script = (
        "print(os.getcwd(), given.directory, child.roster().assignment.lead); child.tell(Completed()); child.end(0)"
    )
    async with host(tmp_path) as here:
        here.start(here.bundle(script))
        assert isinstance(await here.said.get(), Started)
        here.supervisor.tell(TellRole(ROLE, Roster(1, 1, (), (), Assignment((), (), 7, ()))))
        assert await here.until_gone() == [Completed(), Exited(0, 0)]
        directory = here.home.role(ROLE)
        assert (directory / "log").read_text() == f"{directory / 'work'} {directory} 7\n"
        here.supervisor.forget(ROLE.job)
        while (directory / "work").exists():
            await asyncio.sleep(0)
        assert (directory / "log").exists()


async def test_a_script_finds_the_variables_that_it_was_given(tmp_path: Path) -> None:
    script = "print(os.environ['MODE'], os.environ.get('USER')); child.tell(Completed()); child.end(0)"
    async with host(tmp_path) as here:
        here.start(here.bundle(script), MODE="fast one", USER="somebody")
        assert (await here.until_gone())[-1] == Exited(0, 0)
        assert (here.home.role(ROLE) / "log").read_text() == "fast one somebody\n"


@pytest.mark.parametrize(
    ("python", "hint"),
    [
        ("/nowhere/python", "interpreter /nowhere/python cannot be started"),
        ("/bin/false", "/bin/false cannot run a worker here"),
    ],
)
async def test_an_interpreter_that_runs_no_worker_is_final_and_named(tmp_path: Path, python: str, hint: str) -> None:
    async with host(tmp_path) as here:
        here.start(here.bundle(""), python)
        failed = next(event for event in await here.until_gone() if isinstance(event, Failed))
        assert (failed.kind, failed.starting) == ("cannot-start", True)
        assert hint in failed.text


async def test_a_bundle_that_is_none_is_final_and_one_that_is_not_here_is_this_host_s(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        for blob, kind in ((here.put(b"garbage" * 1000), "cannot-start"), (BlobHash("0" * 64), CANNOT_START_HERE)):
            here.start(blob)
            failed, exited = await here.until_gone()
            assert isinstance(failed, Failed)
            assert (failed.kind, failed.starting) == (kind, True)
            assert exited == Exited(1, 0)
    assert CANNOT_START_HERE in RECOVERABLE


async def test_a_full_disk_is_no_fault_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("dmi_node.supervision.supervisor._prepare", full)
    async with host(tmp_path) as here:
        here.start(here.bundle("pass"))
        failed, _ = await here.until_gone()
        assert isinstance(failed, Failed)
        assert failed.kind == "disk"
        assert failed.kind in RECOVERABLE


async def test_one_that_is_stopped_before_it_was_started_never_starts(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        here.start(here.bundle("time.sleep(100)"))
        here.supervisor.stop(StopRole(ROLE, 20_000))
        assert await here.until_gone() == [Exited(0, signal.SIGTERM)]


async def test_a_part_is_taken_in_before_it_is_told(tmp_path: Path) -> None:
    script = 'path = pathlib.Path(given.directory, "part"); path.write_bytes(b"part"); part(path); child.end(0)'
    async with host(tmp_path) as here:
        here.start(here.bundle(script))
        _, written, _ = await here.until_gone()
        assert isinstance(written, PartWritten)
        assert here.blobs.path(written.blob).read_bytes() == b"part"


@pytest.mark.parametrize(
    "script",
    [
        'part(given.directory + "/../../../../node.key_secret", b"secret")',
        'os.symlink(given.directory + "/../../../../node.key_secret", "link"); part(os.getcwd() + "/link", b"secret")',
        'part(given.directory + "/missing")',
        'part("a\\0b")',
        'pathlib.Path("part").write_bytes(b"other"); part(os.getcwd() + "/part")',
    ],
    ids=["outside", "link", "missing", "no path", "other bytes"],
)
async def test_job_code_cannot_give_away_what_is_not_its_own(tmp_path: Path, script: str) -> None:
    async with host(tmp_path) as here:
        here.home.key.write_bytes(b"secret")
        bundle = here.bundle(f"{script}; child.end(0)")
        here.start(bundle)
        _, failed, _ = await here.until_gone()
        assert isinstance(failed, Failed)
        assert failed.kind == "disk"
        assert here.home.key.read_bytes() == b"secret"
        assert [path.name for path in here.home.blobs.iterdir()] == [bundle]


async def test_all_end_when_the_daemon_does(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        here.start(here.bundle("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"))
        started = await here.said.get()
        assert isinstance(started, Started)
        child = psutil.Process(started.pid)
        await here.supervisor.close(1.0)
        assert not psutil.wait_procs([child], timeout=10)[1]


async def test_what_is_not_here_is_left_alone(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        here.supervisor.stop(StopRole(ROLE, 1))
        here.supervisor.tell(TellRole(ROLE, Roster(1, 1, (), (), Assignment((), (), 0, ()))))
        await here.supervisor.close(1.0)
        assert here.said.empty()


async def test_only_the_role_that_lost_a_process_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a training a server may be the largest while a worker comes: that one goes on."""
    async with host(tmp_path) as made:
        server = structs.replace(ROLE, role="server")

        async def look() -> None:
            made.supervisor._exceeds(server, 7, "it used 2 GB")

        monkeypatch.setattr(made.supervisor._shares, "look", look)
        bound = Bound("127.0.0.1:1", PublicKey("k" * 40), 7)
        await made.supervisor._pass_on(ROLE, bound)
        assert made.said.get_nowait() == bound
        assert not await made.supervisor._fits(server)


async def test_why_a_process_was_ended_long_ago_explains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path) as made:
        made.supervisor._exceeds(ROLE, 7, "it used 2 GB")
        await made.supervisor._pass_on(ROLE, Failed("compute-died", "it ended"))
        assert made.said.get_nowait() == Failed("over-memory", "it ended: it used 2 GB")
        monkeypatch.setattr(supervisor_module, "_JUST_NOW_S", 0.0)
        await made.supervisor._pass_on(ROLE, Failed("compute-died", "it ended"))
        assert made.said.get_nowait() == Failed("compute-died", "it ended")


def told(events: list[RoleEvent]) -> list[str]:
    return [event.kind for event in events if isinstance(event, Failed)]


def fails(*_: object) -> None:
    raise TypeError("nobody thought of this")


LIVES = "child.roster(); time.sleep(60)"


@pytest.mark.parametrize("what", ["unpack", "environment", "Signs"])
async def test_what_raises_while_a_role_is_prepared_or_watched_is_its_own_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = SimpleNamespace(look=fails, gave=lambda _: None, stands_still=fails)
    names = {"unpack": supervisor_module, "environment": module, "Signs": module}
    monkeypatch.setattr(names[what], what, fails if what != "Signs" else lambda: broken)
    async with host(tmp_path) as here:
        watching = asyncio.ensure_future(here.tasks.watch())
        here.start(here.bundle(LIVES))
        events = await here.until_gone()
        assert told(events) == [CANNOT_START_HERE]
        failed = next(event for event in events if isinstance(event, Failed))
        assert failed.text.splitlines()[-1] == "TypeError: nobody thought of this"
        assert "nobody thought of this" in caplog.text, "with its traceback, in the log of the node"
        assert "Traceback" in caplog.text
        pids = [event.pid for event in events if isinstance(event, Started)]
        assert not any(psutil.pid_exists(pid) for pid in pids)
        monkeypatch.undo()
        monkeypatch.setattr(module, "_MODULES", {"worker": "role_of_the_test"})
        here.start(here.bundle("child.tell(Completed()); child.end(0)"))
        assert (await here.until_gone())[-2:] == [Completed(), Exited(0, 0)], (
            "the next one is run as if nothing had been"
        )
        assert not watching.done(), "and the daemon never ended"


@pytest.mark.parametrize("what", ["start", "tell", "stop"])
async def test_what_raises_while_a_role_is_started_told_or_stopped_is_its_own_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with host(tmp_path) as here:
        watching = asyncio.ensure_future(here.tasks.watch())
        if what == "start":
            monkeypatch.setattr(supervisor_module, "RoleProcess", fails)
            here.start(here.bundle(LIVES))
        else:
            here.start(here.bundle(LIVES))
            assert isinstance(await here.said.get(), Started)
            monkeypatch.setattr(module.RoleProcess, what, fails)
            if what == "tell":
                here.supervisor.tell(TellRole(ROLE, Roster(1, 1, (), (), Assignment((), (), 7, ()))))
            else:
                here.supervisor.stop(StopRole(ROLE, 10))
        assert told(await here.until_gone()) == [CANNOT_START_HERE]
        assert not watching.done()


async def test_shares_and_leftovers_that_raise_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_keep_results", fails)
    monkeypatch.setattr(Shares, "end", fails)
    async with host(tmp_path) as here:
        watching = asyncio.ensure_future(here.tasks.watch())
        here.start(here.bundle("child.tell(Completed()); child.end(0)"))
        assert (await here.until_gone())[-1] == Exited(0, 0)
        here.supervisor.forget(ROLE.job)
        await asyncio.gather(*here.tasks._tasks)
        assert not watching.done()
