"""The verbs of models."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dmi_node import clock
from dmi_node.control import checks
from dmi_node.control.server import Client, RefusalError, Verb
from dmi_node.control.uploads import Node, Uploads
from dmi_protocol.cluster.command import AddModel, Command, RemoveModel
from dmi_protocol.cluster.models import ModelVersion, find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.reasons import UnknownModel
from dmi_protocol.sentences import sentence


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
        return {"model-add": self.add, "models": self.models, "model": self.model, "model-rm": self.remove}

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

    def _shown(self, name: str) -> dict[str, Any]:
        version = find(self._state().models, name)
        if version is None:
            raise RefusalError("unknown", sentence(UnknownModel(name[:80])))
        return self._plain(version)

    def _plain(self, version: ModelVersion) -> dict[str, Any]:
        content, members = version.content, self._state().members
        nodes = set.intersection(*(set(nodes) for nodes in version.nodes.values()))
        return {
            "id": version.id,
            "name": version.name,
            "version": version.number,
            "hash": version.digest,
            "format": content.format,
            "factory": content.factory or None,
            "size_bytes": content.size_bytes,
            "inputs": msgspec.to_builtins(content.inputs),
            "outputs": msgspec.to_builtins(content.outputs),
            "nodes": sorted(members[node].name for node in nodes if node in members),
            "added_unix": version.added_unix,
        }
