"""The verbs of deployments."""

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from dmi_node.control import checks
from dmi_node.control.server import Client, RefusalError, Verb
from dmi_protocol.cluster.command import Cancel, Command, SetVersions, Submit
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash, JobId
from dmi_protocol.kinds.deployment.state import DeploymentJob, is_deployed
from dmi_protocol.messages.roles import Versions
from dmi_protocol.model import ModelRef
from dmi_protocol.reasons import NotServed, UnknownModel
from dmi_protocol.sentences import sentence


class ServingVerbs:
    """``ask`` has a command agreed, and raises ``RefusalError`` when it is not; ``named`` gives the job of a name."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        ask: Callable[[Command], Awaitable[str]],
        named: Callable[[str], JobId],
    ) -> None:
        self._state = state
        self._named = named
        self._ask = ask

    def table(self) -> dict[str, Verb]:
        """Every verb by its name."""
        return {
            "serve": self.serve,
            "unserve": self.unserve,
            "promote": self.promote,
            "rollback": self.rollback,
            "pin": self.pin,
            "canary": self.canary,
        }

    async def serve(self, client: Client, args: dict[str, Any]) -> object:
        """Serve a model; gives the job and the version."""
        request = checks.request(args["request"])
        spec = checks.deployment(args["spec"], self._state())
        if spec.follow is not None:
            spec = replace(spec, follow=self._named(spec.follow))
        job = await self._ask(Submit(request, spec, BlobHash(""), ()))
        return {"id": job, "model": spec.name, "version": _number(spec.model)}

    async def unserve(self, client: Client, args: dict[str, Any]) -> object:
        """End a deployment, by the name of its model."""
        request, job = checks.request(args["request"]), self._job(str(args["name"]))
        await self._ask(Cancel(request, job.id))
        return {"id": job.id}

    async def promote(self, client: Client, args: dict[str, Any]) -> object:
        """Compute with the version ``NAME:NUMBER``, or the newest of ``NAME``."""
        job = self._job(str(args["name"]).partition(":")[0])
        return await self._set(args, job, Versions(self._ref(job, str(args["name"]))), pinned=job.pinned)

    async def rollback(self, client: Client, args: dict[str, Any]) -> object:
        """Compute with the version before; no newer one is taken by itself from then on."""
        job = self._job(str(args["name"]))
        if not job.history:
            raise RefusalError("refused", f"{job.versions.current.id} was served first: there is nothing to go back to")
        return await self._set(args, job, Versions(self._ref(job, job.history[-1].id)), pinned=True)

    async def pin(self, client: Client, args: dict[str, Any]) -> object:
        """Take no newer version by itself, or do so again."""
        job = self._job(str(args["name"]))
        return await self._set(args, job, job.versions, pinned=bool(args["on"]))

    async def canary(self, client: Client, args: dict[str, Any]) -> object:
        """Of a hundred requests so many go to another version; none, and there is no canary."""
        job, share = self._job(str(args["name"])), args["share"]
        if not isinstance(share, int) or not 0 <= share <= 100:
            raise RefusalError("usage", f"--share takes 0 to 100 of a hundred requests, not {share!r}")
        if share == 0:
            return await self._set(args, job, Versions(job.versions.current), pinned=job.pinned)
        ref = self._ref(job, f"{job.spec.name}:{args['version']}")
        if ref.id == job.versions.current.id:
            raise RefusalError("refused", f"{ref.id} is what is served: a canary is another version")
        return await self._set(args, job, Versions(job.versions.current, ref, share), pinned=job.pinned)

    async def _set(self, args: dict[str, Any], job: DeploymentJob, versions: Versions, *, pinned: bool) -> object:
        await self._ask(SetVersions(checks.request(args["request"]), job.id, versions, pinned))
        canary = versions.canary
        return {
            "model": job.spec.name,
            "version": _number(versions.current),
            "canary": None if canary is None else _number(canary),
            "share": versions.share,
            "pinned": pinned,
        }

    def _job(self, name: str) -> DeploymentJob:
        for job in self._state().jobs.values():
            if isinstance(job, DeploymentJob) and is_deployed(job, name):
                return job
        raise RefusalError("unknown", sentence(NotServed(name[:80])))

    def _ref(self, job: DeploymentJob, name: str) -> ModelRef:
        """A version as this deployment computes with it: cut into as many stages as it has."""
        version = find(self._state().models, name)
        if version is None:
            raise RefusalError("unknown", sentence(UnknownModel(name[:80])))
        if job.stages == 1:
            return ModelRef(version.id, version.content)
        used = next((ref for ref in job.known() if ref.id == version.id and version.is_known_as(ref.content)), None)
        if used is not None:  # it may have been cut anew since
            return used
        if job.stages not in version.cuts:
            raise RefusalError(
                "refused",
                f"{version.id} is not cut into {job.stages} stages, as {job.versions.current.id} is: "
                f"`dmi-node models cut {version.id} --memory {job.spec.memory_per_replica}`, or serve it anew",
            )
        return ModelRef(version.id, replace(version.content, stages=version.cuts[job.stages]))


def _number(ref: ModelRef) -> int:
    return int(ref.id.rpartition(":")[2])
