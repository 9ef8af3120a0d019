"""One role process, with a script of the test's in the place of the real role."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from dmi_node.storage import logs
from dmi_node.supervision import process as module
from dmi_node.supervision.process import RoleProcess, environment
from dmi_protocol import limits
from dmi_protocol.identity import JobId, NodeId, PublicKey
from dmi_protocol.messages.roles import (
    Assignment,
    Bound,
    Busy,
    Completed,
    Exited,
    Failed,
    Progressed,
    RoleEvent,
    RoleKey,
    Roster,
    Started,
    TrainingLaunch,
)

pytestmark = pytest.mark.processes

SECONDS = 30
BEGIN = """
import os, subprocess, sys, time
from dmi_protocol.messages.roles import Bound, Completed, Failed, Progressed, TrainingLaunch
from dmi_wire.child import Child
child = Child.inherit()
assert child.launch(TrainingLaunch).script == "train.py"
child.start()
def bound():
    child.tell(Bound("127.0.0.1:1", "k" * 40, os.getpid()))
"""


class Life:
    """A role process that is under way, and what it has said."""

    def __init__(self, directory: Path) -> None:
        self.said: asyncio.Queue[RoleEvent] = asyncio.Queue()
        self.busy: asyncio.Event | None = None
        self.process = RoleProcess(launch(directory), self._take)
        self.task = asyncio.create_task(self.process.run())

    async def _take(self, event: RoleEvent) -> None:
        self.said.put_nowait(event)
        if self.busy is not None:
            await self.busy.wait()

    async def next(self) -> RoleEvent:
        return await self.said.get()

    async def rest(self) -> list[RoleEvent]:
        """All that it says until it has gone."""
        await self.task
        return [self.said.get_nowait() for _ in range(self.said.qsize())]


def launch(directory: Path) -> TrainingLaunch:
    return TrainingLaunch(
        key=RoleKey(JobId("job-000000"), 1, "worker", 0),
        node=NodeId("0" * 16),
        node_name="n0",
        script="train.py",
        args=(),
        bundle="/bundle",
        directory=str(directory),
        leaves=None,
        threads=1,
        workers=1,
        shards=1,
        host="127.0.0.1",
        ports=(0, 0),
    )


@pytest.fixture(autouse=True)
def no_real_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MODULES", {"worker": "role_of_the_test"})


@asynccontextmanager
async def living(tmp_path: Path, script: str) -> AsyncIterator[Life]:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "role_of_the_test.py").write_text(BEGIN + script)
    async with asyncio.timeout(SECONDS):
        life = Life(tmp_path)
        try:
            yield life
        finally:
            life.task.cancel()
            await asyncio.gather(life.task, return_exceptions=True)


async def test_a_life_from_start_to_end(tmp_path: Path) -> None:
    script = 'bound(); print("hello", child.roster().assignment.lead); child.tell(Completed()); child.end(0)'
    async with living(tmp_path, script) as life:
        started = await life.next()
        assert isinstance(started, Started)
        assert await life.next() == Bound("127.0.0.1:1", PublicKey("k" * 40), started.pid)
        assert os.getsid(started.pid) == started.pid
        life.process.tell(Roster(1, 1, (), (), Assignment((), (), 7, ())))
        assert await life.rest() == [Completed(), Exited(0, 0)]
    assert (tmp_path / "log").read_text() == "hello 7\n"


async def test_what_cannot_start_says_so_in_its_log(tmp_path: Path) -> None:
    async with living(tmp_path, "import no_such_package") as life:
        assert [type(event) for event in await life.rest()] == [Started, Exited]
    assert "no_such_package" in (tmp_path / "log").read_text()


async def test_without_a_directory_it_cannot_be_spawned(tmp_path: Path) -> None:
    async with living(tmp_path, "") as life:
        (tmp_path / "work").rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="work"):
            await life.task


async def test_a_killed_process_is_told_at_once(tmp_path: Path) -> None:
    async with living(tmp_path, "bound(); time.sleep(100)") as life:
        started = await life.next()
        assert isinstance(started, Started)
        await life.next()
        os.kill(started.pid, signal.SIGKILL)
        assert await asyncio.wait_for(life.next(), 0.5) == Exited(0, signal.SIGKILL)


async def test_a_stopped_process_is_found_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROLE_STALLED_MS", 1_500)
    async with living(tmp_path, "bound(); time.sleep(100)") as life:
        started = await life.next()
        assert isinstance(started, Started)
        await life.next()
        os.kill(started.pid, signal.SIGSTOP)
        assert await life.rest() == [Exited(0, signal.SIGKILL, stalled=True)]


async def test_one_that_holds_the_interpreter_is_busy_and_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single C call can keep every thread from beating for long; it burns processor time."""
    monkeypatch.setattr(limits, "ROLE_STALLED_MS", 1_000)
    async with living(tmp_path, "bound(); sum(range(10**8)); child.tell(Completed()); child.end(0)") as life:
        assert [type(event) for event in await life.rest()] == [Started, Bound, Completed, Exited]


async def test_that_it_is_busy_is_told_and_later_that_it_is_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROLE_BUSY_MS", 800)
    monkeypatch.setattr(limits, "ROLE_BEAT_MS", 100)  # ours, to look often; the process beats twice a second
    hold = "bound(); sum(range(15 * 10**7)); time.sleep(2); child.tell(Completed()); child.end(0)"
    async with living(tmp_path, hold) as life:
        told = [event for event in await life.rest() if isinstance(event, Busy)]
    assert told == [Busy(1, is_over=False), Busy(1, is_over=True)]


async def test_a_process_is_not_to_blame_while_we_are_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROLE_STALLED_MS", 1_500)
    monkeypatch.setattr(limits, "ROLE_BEAT_MS", 100)
    async with living(tmp_path, "bound(); child.tell(Completed()); time.sleep(100)") as life:
        await life.next()
        life.busy = asyncio.Event()
        await life.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(life.task), 2.5)
        life.busy.set()
        assert await life.next() == Completed()
        life.process.stop(0)
        last = await life.rest()
        assert isinstance(last[-1], Exited)
        assert not last[-1].stalled


async def test_last_words_are_heard_however_long_we_are_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_OUT_S", 0.1)
    async with living(tmp_path, "bound(); child.tell(Completed()); child.end(0)") as life:
        await life.next()
        life.busy = asyncio.Event()
        await life.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(life.task), 1.0)
        life.busy.set()
        assert await life.rest() == [Completed(), Exited(0, 0)]


async def test_it_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    async with living(tmp_path, "bound(); time.sleep(100)") as life:
        await life.next()
        await life.next()
        life.process.stop(20_000)
        assert not life.process.is_wanted
        assert await life.rest() == [Exited(0, signal.SIGTERM)]


async def test_it_is_ended_when_it_does_not_listen(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); bound(); time.sleep(100)"
    async with living(tmp_path, script) as life:
        await life.next()
        await life.next()
        life.process.stop(100)
        assert await life.rest() == [Exited(0, signal.SIGKILL)]


async def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    """And its end is told without waiting for the output that a grandchild holds open."""
    script = 'print(subprocess.Popen(["sleep", "100"]).pid, flush=True); bound(); child.end(3)'
    async with living(tmp_path, script) as life:
        assert (await life.rest())[-1] == Exited(3, 0)
    grandchild = int((tmp_path / "log").read_text())
    _, alive = psutil.wait_procs([psutil.Process(grandchild)] if psutil.pid_exists(grandchild) else [], timeout=10)
    assert not alive


async def test_a_cancelled_life_leaves_no_process(tmp_path: Path) -> None:
    async with living(tmp_path, "bound(); time.sleep(100)") as life:
        started = await life.next()
        assert isinstance(started, Started)
        child = psutil.Process(started.pid)
    assert not psutil.wait_procs([child], timeout=10)[1]


NONSENSE = [
    "child._channel.sendall(b'\\xff\\xff\\xff\\xff')",
    "child._channel.sendall(b'\\x00\\x00\\x00\\x02\\xc1\\xc1')",
    'child.tell(Bound("127.0.0.1:1", "k" * 40, 1))',
    'child.tell(Bound("127.0.0.1:1", "k", os.getpid()))',
    'child.tell(Bound("h" * 1000 + ":1", "k" * 40, os.getpid()))',
]


@pytest.mark.parametrize("script", NONSENSE)
async def test_one_that_speaks_nonsense_is_ended(tmp_path: Path, script: str) -> None:
    async with living(tmp_path, f"{script}; time.sleep(100)") as life:
        await life.next()
        assert await life.rest() == [Exited(0, signal.SIGKILL)]


async def test_a_traceback_is_bounded_and_keeps_its_end(tmp_path: Path) -> None:
    script = 'child.tell(Failed("raised" * 99, "x" * 100000 + "the end")); child.end(1)'
    async with living(tmp_path, script) as life:
        failed = (await life.rest())[-2]
        assert isinstance(failed, Failed)
        assert len(failed.text) == limits.TRACEBACK_BYTES
        assert failed.text.endswith("the end")
        assert len(failed.kind) <= limits.NAME_CHARACTERS


async def test_a_log_has_a_bound_and_the_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_HEAD", 1000)
    monkeypatch.setattr(logs, "_SEGMENT", 100)
    async with living(tmp_path, 'print("x" * 1000000 + "the end"); child.tell(Completed()); child.end(0)') as life:
        assert (await life.rest())[-2:] == [Completed(), Exited(0, 0)]
    assert (tmp_path / "log").read_text() == "x" * 1000
    rest = "".join(path.read_text() for path in sorted(tmp_path.glob("log.*")))
    assert rest.endswith("the end\n")
    assert len(rest) <= 400


async def test_a_log_that_cannot_be_written_does_not_stop_the_process(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    script = 'print("x" * 1000000, flush=True); child.tell(Progressed(1, 1, 1.0, None)); child.end(0)'
    async with living(tmp_path, script) as life:
        assert (await life.rest())[-2:] == [Progressed(1, 1, 1.0, None), Exited(0, 0)]


def test_a_role_sees_nothing_of_the_daemon_s_settings() -> None:
    source = {
        "PATH": "/bin",
        "DMI_HOME": "/x",
        "DMI_JOIN": "secret",
        "NOTIFY_SOCKET": "@x",
        "PYTHONPATH": "/y",
        "AWS": "z",
    }
    assert environment(7, source) == {"PATH": "/bin", "PYTHONPATH": "/y", "DMI_ROLE_FD": "7", "PYTHONUNBUFFERED": "1"}
