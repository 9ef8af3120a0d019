"""The client with ``await``: the same calls, each in a thread, so that there is one implementation.

A task that is cancelled while it waits for an item lets the thread go too.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dmi import job as blocking_job
from dmi import mesh as blocking
from dmi.connection import Stream
from dmi.errors import NoNodeError
from dmi.infer import client as blocking_client
from dmi.models import library as blocking_library
from dmi.serve import client as blocking_serving

Item = TypeVar("Item")


async def _items(source: Stream[Item]) -> AsyncIterator[Item]:
    end = object()
    try:
        while (item := await asyncio.to_thread(next, source, end)) is not end:
            yield item  # type: ignore[misc]
    finally:
        source.close()


async def connect(home: str | Path | None = None, *, token: str | None = None) -> "Mesh":
    """See ``dmi.connect``."""
    return Mesh(await asyncio.to_thread(blocking.connect, home, token=token))


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
        last = await self.status()
        async for event in self.events():
            last = event
        return await asyncio.to_thread(self._job.judge, last)

    def logs(self, *, follow: bool = False) -> AsyncIterator[tuple[str, str]]:
        """See ``dmi.job.Job.logs``."""
        return _items(self._job.logs(follow=follow))

    async def why(self) -> dict[str, Any]:
        """See ``dmi.job.Job.why``."""
        return await asyncio.to_thread(self._job.why)

    async def remove(self) -> None:
        """See ``dmi.job.Job.remove``."""
        await asyncio.to_thread(self._job.remove)

    async def cancel(self) -> None:
        """See ``dmi.job.Job.cancel``."""
        await asyncio.to_thread(self._job.cancel)

    async def export(self, path: str | Path) -> None:
        """See ``dmi.job.Job.export``."""
        await asyncio.to_thread(self._job.export, path)


class Inference(Job):
    """See ``dmi.infer.client.Inference``."""

    def __init__(self, inference: blocking_client.Inference) -> None:
        super().__init__(inference)
        self._inference = inference

    async def write(self) -> dict[str, Any]:
        """See ``dmi.infer.client.Inference.write``."""
        async for event in self.progress():
            last = event
        await asyncio.to_thread(self._job.judge, last)
        return await self.collect()

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """See ``dmi.infer.client.Inference.progress``."""
        patience = blocking_client.Patience()
        while True:
            try:
                async for event in self.events():
                    patience.heard()
                    yield event
            except NoNodeError as error:
                await asyncio.sleep(patience.wait_s(error))
            else:
                return

    async def collect(self) -> dict[str, Any]:
        """See ``dmi.infer.client.Inference.collect``."""
        return await asyncio.to_thread(self._inference.collect)


class Deployment(Job):
    """See ``dmi.serve.client.Deployment``."""

    def __init__(self, deployment: blocking_serving.Deployment) -> None:
        super().__init__(deployment)
        self._deployment = deployment
        self.model = deployment.model
        self.version = deployment.version

    async def ready(self) -> list[str]:
        """See ``dmi.serve.client.Deployment.ready``."""
        return await asyncio.to_thread(self._deployment.ready)

    async def urls(self) -> list[str]:
        """See ``dmi.serve.client.Deployment.urls``."""
        return await asyncio.to_thread(self._deployment.urls)

    async def wait(self) -> dict[str, Any]:
        """See ``dmi.serve.client.Deployment.wait``."""
        return await asyncio.to_thread(self._deployment.wait)


class Models:
    """See ``dmi.models.library.Models``."""

    def __init__(self, models: blocking_library.Models) -> None:
        self._models = models

    async def add(
        self,
        name: str,
        path: str | Path | None = None,
        *,
        weights: str | Path | None = None,
        job: str | None = None,
        model: str | None = None,
        inputs: Sequence[str] = (),
    ) -> dict[str, Any]:
        """See ``dmi.models.library.Models.add``."""
        return await asyncio.to_thread(
            self._models.add, name, path, weights=weights, job=job, model=model, inputs=inputs
        )

    async def versions(self) -> list[dict[str, Any]]:
        """See ``dmi.models.library.Models.versions``."""
        return await asyncio.to_thread(self._models.versions)

    async def show(self, name: str) -> dict[str, Any]:
        """See ``dmi.models.library.Models.show``."""
        return await asyncio.to_thread(self._models.show, name)

    async def remove(self, name: str) -> list[str]:
        """See ``dmi.models.library.Models.remove``."""
        return await asyncio.to_thread(self._models.remove, name)

    async def cut(self, name: str, most_bytes: int) -> dict[str, Any]:
        """See ``dmi.models.library.Models.cut``."""
        return await asyncio.to_thread(self._models.cut, name, most_bytes)

    async def promote(self, name: str) -> dict[str, Any]:
        """See ``dmi.models.library.Models.promote``."""
        return await asyncio.to_thread(self._models.promote, name)

    async def rollback(self, name: str) -> dict[str, Any]:
        """See ``dmi.models.library.Models.rollback``."""
        return await asyncio.to_thread(self._models.rollback, name)

    async def pin(self, name: str, *, on: bool = True) -> dict[str, Any]:
        """See ``dmi.models.library.Models.pin``."""
        return await asyncio.to_thread(self._models.pin, name, on=on)

    async def canary(self, name: str, version: int | None, share: int = 10) -> dict[str, Any]:
        """See ``dmi.models.library.Models.canary``."""
        return await asyncio.to_thread(self._models.canary, name, version, share)


class Mesh:
    """See ``dmi.mesh.Mesh``."""

    def __init__(self, mesh: blocking.Mesh) -> None:
        self._mesh = mesh
        self.models = Models(mesh.models)

    async def infer(
        self,
        config: str | Path | dict[str, Any],
        out: str | Path,
        *,
        nodes: int | None = None,
        cpus: int | None = None,
        memory: int | str | None = None,
        resume: bool = False,
    ) -> Inference:
        """See ``dmi.mesh.Mesh.infer``."""
        begun = await asyncio.to_thread(
            self._mesh.infer, config, out, nodes=nodes, cpus=cpus, memory=memory, resume=resume
        )
        return Inference(begun)

    async def dry_run(self, config: str | Path | dict[str, Any]) -> dict[str, Any]:
        """See ``dmi.mesh.Mesh.dry_run``."""
        return await asyncio.to_thread(self._mesh.dry_run, config)

    async def submit(
        self,
        script: str | Path,
        args: Sequence[str] = (),
        *,
        name: str | None = None,
        workers: int | None = None,
        servers: int | None = None,
        backups: int | None = None,
        leaves: int | None = None,
        threads: int = 1,
        cpus: int | None = None,
        memory: int | str | None = None,
        include: Iterable[str | Path] = (),
        root: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        python: str | None = None,
    ) -> Job:
        """See ``dmi.mesh.Mesh.submit``."""
        submitted = await asyncio.to_thread(
            self._mesh.submit,
            script,
            args,
            name=name,
            workers=workers,
            servers=servers,
            backups=backups,
            leaves=leaves,
            threads=threads,
            cpus=cpus,
            memory=memory,
            include=include,
            root=root,
            env=env,
            python=python,
        )
        return Job(submitted)

    async def serve(
        self,
        model: str,
        *,
        version: int | None = None,
        replicas: int | str | None = None,
        least: int | None = None,
        most: int | None = None,
        gateways: int | None = None,
        max_batch: int = 32,
        max_wait_ms: int = 5,
        exact: bool = False,
        port: int | None = None,
        certificate: str | None = None,
        certificate_key: str | None = None,
        threads: int = 1,
        cpus: int | None = None,
        memory: int | str | None = None,
        follow: str | None = None,
        every: int | None = None,
        memory_per_replica: int | None = None,
    ) -> Deployment:
        """See ``dmi.mesh.Mesh.serve``."""
        served = await asyncio.to_thread(
            self._mesh.serve,
            model,
            version=version,
            replicas=replicas,
            least=least,
            most=most,
            gateways=gateways,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            exact=exact,
            port=port,
            certificate=certificate,
            certificate_key=certificate_key,
            threads=threads,
            cpus=cpus,
            memory=memory,
            follow=follow,
            every=every,
            memory_per_replica=memory_per_replica,
        )
        return Deployment(served)

    async def unserve(self, model: str) -> str:
        """See ``dmi.mesh.Mesh.unserve``."""
        return await asyncio.to_thread(self._mesh.unserve, model)

    async def predict(
        self, name: str, inputs: Any, *, version: int | None = None, timeout_s: float = 30.0, token: str | None = None
    ) -> Any:
        """See ``dmi.mesh.Mesh.predict``."""
        return await asyncio.to_thread(
            self._mesh.predict, name, inputs, version=version, timeout_s=timeout_s, token=token
        )

    async def tokens(self) -> list[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.tokens``."""
        return await asyncio.to_thread(self._mesh.tokens)

    async def add_token(self, name: str, scope: str = "infer") -> dict[str, Any]:
        """See ``dmi.mesh.Mesh.add_token``."""
        return await asyncio.to_thread(self._mesh.add_token, name, scope)

    async def remove_token(self, name: str) -> None:
        """See ``dmi.mesh.Mesh.remove_token``."""
        await asyncio.to_thread(self._mesh.remove_token, name)

    async def deployments(self) -> list[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.deployments``."""
        return await asyncio.to_thread(self._mesh.deployments)

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

    async def disks(self) -> list[dict[str, Any]]:
        """See ``dmi.mesh.Mesh.disks``."""
        return await asyncio.to_thread(self._mesh.disks)

    async def invite(self, ttl_s: int = 3600) -> dict[str, Any]:
        """See ``dmi.mesh.Mesh.invite``."""
        return await asyncio.to_thread(self._mesh.invite, ttl_s)

    async def leave(self) -> None:
        """See ``dmi.mesh.Mesh.leave``."""
        await asyncio.to_thread(self._mesh.leave)

    async def drain(self, node: str, *, on: bool = True) -> dict[str, Any]:
        """See ``dmi.mesh.Mesh.drain``."""
        return await asyncio.to_thread(self._mesh.drain, node, on=on)

    async def expel(self, node: str) -> dict[str, Any]:
        """See ``dmi.mesh.Mesh.expel``."""
        return await asyncio.to_thread(self._mesh.expel, node)

    async def stop(self) -> None:
        """See ``dmi.mesh.Mesh.stop``."""
        await asyncio.to_thread(self._mesh.stop)

    async def version(self) -> str:
        """See ``dmi.mesh.Mesh.version``."""
        return await asyncio.to_thread(self._mesh.version)
