"""Background work that somebody watches."""

import asyncio

import pytest

from dmi_node.tasks import Tasks

SECONDS = 10


class BoomError(Exception):
    pass


async def fail() -> None:
    raise BoomError


async def test_the_first_failure_is_raised_where_it_is_watched() -> None:
    tasks = Tasks()
    tasks.start(asyncio.sleep(0), "fine")
    tasks.start(fail(), "fails")
    with pytest.raises(BoomError):
        await asyncio.wait_for(tasks.watch(), SECONDS)
    await tasks.close()


async def test_a_failure_before_the_watch_is_not_lost() -> None:
    tasks = Tasks()
    await asyncio.wait([tasks.start(fail(), "fails")], timeout=SECONDS)
    with pytest.raises(BoomError):
        await asyncio.wait_for(tasks.watch(), SECONDS)
    await tasks.close()


async def test_close_leaves_nothing_running() -> None:
    tasks, ended = Tasks(), asyncio.Event()

    async def lives() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = tasks.start(lives(), "lives")
    await asyncio.sleep(0)
    watch = asyncio.ensure_future(tasks.watch())
    await asyncio.sleep(0)
    await tasks.close()
    assert ended.is_set()
    assert task.cancelled()
    await asyncio.wait([watch], timeout=SECONDS)
    assert watch.cancelled()
