"""The verbs of models."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import msgspec

from dmi_node import clock
from dmi_node.control import checks
from dmi_node.control.server import Client, RefusalError, Verb
from dmi_node.control.uploads import Uploads
from dmi_node.storage.blobs import Blobs
from dmi_node.transport.fetching import NoSourceError
from dmi_node.transport.library import Library
from dmi_protocol.cluster.command import AddModel, Command, CutModel, RemoveModel
from dmi_protocol.cluster.models import ModelVersion, find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.messages.blobs import DiskUse
from dmi_protocol.peer import Peer
from dmi_protocol.reasons import UnknownModel
from dmi_protocol.sentences import sentence

_NAMES = {"models": "model_bytes_by_id", "jobs": "job_bytes_by_id"}
_NAMES |= {name: f"{name}_bytes" for name in ("total", "free", "quota", "arriving", "unclaimed", "memory")}


class Node(Protocol):
    """The daemon, as far as models need it."""

    peer: Peer
    blobs: Blobs
    library: Library

    async def pin(self, blob: BlobHash) -> None:
        """The blob stays here for a while, if it is here."""
        ...

    def sources(self, holders: Iterable[NodeId]) -> list[NodeId]:
        """Whom a blob is fetched from: first those who are well."""
        ...


class ModelVerbs:
    """``ask`` has a command agreed, and raises ``RefusalError`` when it is not."""

    def __init__(
        self, node: Node, uploads: Uploads, state: Callable[[], ClusterState], ask: Callable[[Command], Awaitable[str]]
    ) -> None:
        self._node = node
        self._uploads = uploads
        self._state = state
        self._ask = ask

    def table(self) -> dict[str, Verb]:
        """Every verb by its name."""
        return {
            "model-add": self.add,
            "models": self.models,
            "model": self.model,
            "model-rm": self.remove,
            "model-files": self.files,
            "model-cut": self.cut,
            "df": self.disks,
        }

    async def add(self, client: Client, args: dict[str, Any]) -> object:
        """The client sends what is needed of the files; gives the version."""
        request, name = checks.request(args["request"]), str(args["name"])
        content = checks.content(args["content"])
        files = {file.blob: file.size_bytes for file in content.files}
        holders = await self._uploads.take(client, files, "the model's files")
        known = await self._ask(AddModel(request, name, content, holders, clock.unix()))
        return self._shown(known)

    async def models(self, client: Client, args: dict[str, Any]) -> object:
        """Every version, by name and number."""
        models = self._state().models
        return [self._plain(models[name][number]) for name in sorted(models) for number in sorted(models[name])]

    async def model(self, client: Client, args: dict[str, Any]) -> object:
        """One version."""
        return self._shown(str(args["name"]))

    async def remove(self, client: Client, args: dict[str, Any]) -> object:
        """One version, or with a name alone all of them; gives their ids."""
        request, wanted = checks.request(args["request"]), str(args["name"])
        name, _, number = wanted.partition(":")
        found = self._state().models.get(name, {})
        if number and find({name: found}, wanted) is None:
            raise RefusalError("unknown", sentence(UnknownModel(wanted[:80])))
        gone = [version.id for version in found.values() if not number or version.id == wanted]
        await self._ask(RemoveModel(request, name, int(number) if number else None))
        return {"removed": gone}

    async def files(self, client: Client, args: dict[str, Any]) -> object:
        """A version's description, and where its files lie on this host: they are fetched if they are not here."""
        name = str(args["name"])
        version = find(self._state().models, name)
        if version is None:
            raise RefusalError("unknown", sentence(UnknownModel(name[:80])))
        paths = {}
        for file in version.content.files:
            await self._node.pin(file.blob)
            try:
                await self._node.library.fetch(file.blob, self._node.sources(version.nodes[file.blob]))
            except (NoSourceError, OSError) as error:
                raise RefusalError("refused", f"{version.id} cannot be had: {error}") from error
            paths[file.name] = str(self._node.blobs.path(file.blob))
        return {"id": version.id, "content": msgspec.to_builtins(version.content), "files": paths}

    async def cut(self, client: Client, args: dict[str, Any]) -> object:
        """A version is cut into stages: the client sends what is needed of their files; gives the version."""
        request, name, digest = checks.request(args["request"]), str(args["name"]), str(args["hash"])
        stages = checks.stages(args["stages"])
        files = {file.blob: file.size_bytes for stage in stages for file in stage.files}
        holders = await self._uploads.take(client, files, "the model's stages")
        await self._ask(CutModel(request, name, digest, stages, holders))
        return self._shown(name)

    async def disks(self, client: Client, args: dict[str, Any]) -> object:
        """What lies where, by the members' names; a member that does not answer has nulls."""
        members = sorted(self._state().members.values(), key=lambda member: (member.name, member.node))
        uses = await asyncio.gather(*(self._disk(member.node) for member in members))
        return [{"node": member.name, **_disk(use)} for member, use in zip(members, uses, strict=True)]

    async def _disk(self, node: NodeId) -> DiskUse | None:
        if node == self._node.peer.me.node:
            return await self._node.library.disk_here()
        return await self._node.library.disk(node) if self._node.peer.standing(node) == "alive" else None

    def _shown(self, name: str) -> dict[str, Any]:
        version = find(self._state().models, name)
        if version is None:
            raise RefusalError("unknown", sentence(UnknownModel(name[:80])))
        return self._plain(version)

    def _plain(self, version: ModelVersion) -> dict[str, Any]:
        content, members = version.content, self._state().members
        nodes = set.intersection(*(set(version.nodes[file.blob]) for file in content.files))
        return {
            "id": version.id,
            "name": version.name,
            "version": version.number,
            "hash": version.digest,
            "format": content.format,
            "factory": content.factory or None,
            "size_bytes": content.size_bytes,
            "files": {file.name: file.blob for file in content.files},
            "inputs": msgspec.to_builtins(content.inputs),
            "outputs": msgspec.to_builtins(content.outputs),
            "nodes": sorted(members[node].name for node in nodes if node in members),
            "cuts": [[stage.weight_bytes for stage in version.cuts[count]] for count in sorted(version.cuts)],
            "added_unix": version.added_unix,
        }


def _disk(use: DiskUse | None) -> dict[str, Any]:
    names = [field.name for field in msgspec.structs.fields(DiskUse) if field.name != "request"]
    found = {} if use is None else msgspec.structs.asdict(use)
    return {_NAMES.get(name, name): found.get(name) for name in names}
