"""Tasks that somebody watches: one that fails ends what it belongs to."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """A bounded life for background work. Tasks that end are forgotten; the first failure is raised by ``watch``."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[None] | None = None

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` beside everything else."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failed = self._future()
            if not failed.done():
                failed.set_exception(error)

    def _future(self) -> asyncio.Future[None]:
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return self._failed

    async def watch(self) -> None:
        """Wait for the first failure, and raise it."""
        await self._future()

    async def close(self) -> None:
        """Cancel everything, and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
