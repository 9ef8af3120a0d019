"""The client with ``await``: the same calls, each in a thread, so that there is one implementation."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dmi import job as blocking_job
from dmi import mesh as blocking

Item = TypeVar("Item")


async def _items(source: Iterator[Item]) -> AsyncIterator[Item]:
    end = object()
    while (item := await asyncio.to_thread(next, source, end)) is not end:
        yield item  # type: ignore[misc]


async def connect(home: str | Path | None = None) -> "Mesh":
    """See ``dmi.connect``."""
    return Mesh(await asyncio.to_thread(blocking.connect, home))


class Job:
    """See ``dmi.job.Job``."""

    def __init__(self, job: blocking_job.Job) -> None:
        self._job = job
        self.id = job.id

    async def status(self) -> dict[str, Any]:
        """See ``dmi.job.Job.status``."""
        return await asyncio.to_thread(self._job.status)

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """See ``dmi.job.Job.events``."""
        return _items(self._job.events())

    async def wait(self) -> dict[str, Any]:
        """See ``dmi.job.Job.wait``."""
        return await asyncio.to_thread(self._job.wait)

    def logs(self, *, follow: bool = False) -> AsyncIterator[tuple[str, str]]:
        """See ``dmi.job.Job.logs``."""
        return _items(self._job.logs(follow=follow))

    async def why(self) -> dict[str, Any]:
        """See ``dmi.job.Job.why``."""
        return await asyncio.to_thread(self._job.why)

    async def cancel(self) -> None:
        """See ``dmi.job.Job.cancel``."""
        await asyncio.to_thread(self._job.cancel)

    async def export(self, path: str | Path) -> None:
        """See ``dmi.job.Job.export``."""
        await asyncio.to_thread(self._job.export, path)


class Mesh:
    """See ``dmi.mesh.Mesh``."""

    def __init__(self, mesh: blocking.Mesh) -> None:
        self._mesh = mesh

    async def submit(self, script: str | Path, args: tuple[str, ...] = (), **options: Any) -> Job:
        """See ``dmi.mesh.Mesh.submit``."""
        return Job(await asyncio.to_thread(self._mesh.submit, script, args, **options))

    async def job(self, name: str) -> Job:
        """See ``dmi.mesh.Mesh.job``."""
        return Job(await asyncio.to_thread(self._mesh.job, name))

    async def status(self) -> dict[str, Any]:
        """See ``dmi.mesh.Mesh.status``."""
        return await asyncio.to_thread(self._mesh.status)

    def watch(self) -> AsyncIterator[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.watch``."""
        return _items(self._mesh.watch())

    async def members(self) -> list[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.members``."""
        return await asyncio.to_thread(self._mesh.members)

    async def jobs(self) -> list[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.jobs``."""
        return await asyncio.to_thread(self._mesh.jobs)

    async def roles(self) -> list[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.roles``."""
        return await asyncio.to_thread(self._mesh.roles)
