"""Processes are held to what they were promised: real ones, with threads and children."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dmi_node.supervision.sessions import memory_of
from dmi_node.supervision.shares import Shares
from dmi_node.tasks import Tasks
from dmi_protocol.capacity import Capacity
from dmi_protocol.identity import JobId
from dmi_protocol.messages.roles import RoleKey

pytestmark = pytest.mark.processes

MB = 10**6
ALL = frozenset(os.sched_getaffinity(0))
FIRST = frozenset({min(ALL)})
SECONDS = 20
LIVE = """
import subprocess, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
held = bytearray(int(sys.argv[1]))
print(child.pid, flush=True)
sys.stdin.read()
"""


def key(name: str, role: str = "worker", index: int = 0) -> RoleKey:
    return RoleKey(JobId(name), 1, role, index)  # type: ignore[arg-type]


class Bench:
    """Shares, and processes that are held to them."""

    def __init__(self, directory: Path) -> None:
        self.tasks = Tasks()
        self.exceeded: asyncio.Queue[tuple[RoleKey, int, str]] = asyncio.Queue()
        self.shares = Shares(self.tasks, lambda: None, lambda *said: self.exceeded.put_nowait(said))
        self._directory = directory
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, role: RoleKey, share: Capacity, *, unit: str = "", size: int = 0) -> list[int]:
        """Gives the process, and the child that it has started."""
        self.shares.begin(role, unit or role.job, share, self._directory)
        process = subprocess.Popen(
            [sys.executable, "-c", LIVE, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        self.shares.started(role, process.pid)
        assert process.stdout is not None
        return [process.pid, int(process.stdout.readline())]

    async def close(self) -> None:
        """Nothing is left."""
        for process in self._processes:
            process.kill()
            process.communicate()
        await self.tasks.close()


@asynccontextmanager
async def bench(directory: Path) -> AsyncIterator[Bench]:
    found = Bench(directory)
    try:
        yield found
    finally:
        await found.close()


def threads(pids: list[int]) -> list[int]:
    return [int(entry.name) for pid in pids for entry in Path(f"/proc/{pid}/task").iterdir()]


async def until_on(pids: list[int], cores: frozenset[int]) -> None:
    async with asyncio.timeout(SECONDS):
        while any(os.sched_getaffinity(thread) != cores for thread in threads(pids)):
            await asyncio.sleep(0.01)


def test_who_was_promised_processors_has_them_and_nobody_else(tmp_path: Path) -> None:
    async def live() -> None:
        async with bench(tmp_path) as found:
            free = found.start(key("free"), Capacity())
            assert os.sched_getaffinity(free[0]) == ALL
            mine = found.start(key("mine"), Capacity(cpus=1))
            assert len(threads(mine)) == 3
            await until_on(mine, FIRST)
            await until_on(free, ALL - FIRST or ALL)
            found.shares.end(key("mine"))
            await until_on(free, ALL)

    asyncio.run(live())


def test_processes_of_one_unit_have_one_share_and_a_gateway_has_its_jobs(tmp_path: Path) -> None:
    async def live() -> None:
        async with bench(tmp_path) as found:
            worker = found.start(key("job"), Capacity(cpus=1))
            server = found.start(key("job", "server"), Capacity(cpus=1))
            gateway = found.start(key("job", "gateway"), Capacity(), unit="job/gateway")
            await until_on([*worker, *server, *gateway], FIRST)
            found.shares.end(key("job"))
            await until_on(server, FIRST)
            other = found.start(key("other"), Capacity(cpus=1))
            if len(ALL) > 1:
                assert not os.sched_getaffinity(other[0]) & FIRST

    asyncio.run(live())


def test_where_all_is_promised_who_was_promised_nothing_gives_way(tmp_path: Path) -> None:
    async def live() -> None:
        async with bench(tmp_path) as found:
            free = found.start(key("free"), Capacity())
            found.start(key("mine"), Capacity(cpus=len(ALL)))
            async with asyncio.timeout(SECONDS):
                while any(os.getpriority(os.PRIO_PROCESS, thread) != 10 for thread in threads(free)):
                    await asyncio.sleep(0.01)
            await until_on(free, ALL)

    asyncio.run(live())


def test_what_a_process_chose_itself_of_its_processors_stays(tmp_path: Path) -> None:
    async def live() -> None:
        async with bench(tmp_path) as found:
            mine = found.start(key("mine"), Capacity(cpus=len(ALL)))
            await until_on(mine, ALL)
            last = frozenset({max(ALL)})
            os.sched_setaffinity(mine[0], last)
            watched = found.start(key("watched"), Capacity(memory=1))
            assert (await asyncio.wait_for(found.exceeded.get(), SECONDS))[0] == key("watched"), "it has looked again"
            assert watched
            assert os.sched_getaffinity(mine[0]) == last

    asyncio.run(live())


def test_of_who_has_too_much_memory_the_largest_process_is_ended(tmp_path: Path) -> None:
    async def live() -> None:
        async with bench(tmp_path) as found:
            small = found.start(key("job", "server"), Capacity(memory=150 * MB), size=10 * MB)
            assert memory_of(small[0]) > 10 * MB
            large = found.start(key("job"), Capacity(memory=150 * MB), size=160 * MB)
            role, pid, why = await asyncio.wait_for(found.exceeded.get(), SECONDS)
            assert (role, pid) == (key("job"), large[0])
            assert why.endswith(" MB of memory, and was promised 150.0 MB (--memory)")
            assert memory_of(small[0]) > 10 * MB, "the other one lives"

    asyncio.run(live())
