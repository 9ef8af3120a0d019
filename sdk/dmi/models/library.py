"""``mesh.models``: the versions of models that a mesh keeps."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from dmi import uploads
from dmi.connection import Connection
from dmi.errors import UsageError
from dmi.job import Job
from dmi.models.child import answer_of
from dmi.models.source import Source, hash_of, source_of
from dmi_protocol.identity import BlobHash
from dmi_protocol.model import ModelFile, ModelStage


class Models:
    """Every method raises ``NoNodeError`` when the node has gone, and ``RefusedError`` for what the mesh refuses.

    A version is a dict: ``{"id", "name", "version", "hash", "format", "factory", "size_bytes", "files", "inputs", "outputs",
    "nodes", "cuts", "added_unix"}``, where ``cuts`` gives the bytes of weights of each stage of each cut that there is; an
    input or output is ``{"name", "dtype", "shape", "is_batched"}`` with None where any size may be given.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(
        self,
        name: str,
        path: str | Path | None = None,
        *,
        weights: str | Path | None = None,
        job: str | None = None,
        model: str | None = None,
        inputs: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Add a version of ``name``; returns it once it is on two nodes. The same content is the same version.

        ``path`` is a TorchScript or exported file, or ``module:function`` with ``weights``. With ``job`` the weights are those of
        a training, and ``model`` is its ``module:function``. Raises ``UsageError`` for what is no model.
        """
        if job is not None:
            return self._add_job(name, job, model, inputs)
        if path is None or model is not None:
            raise UsageError(
                "give a model file, or module:function with --weights, or --job with --model module:function"
            )
        return self._send(name, source_of(str(path), weights, inputs))

    def _add_job(self, name: str, job: str, model: str | None, inputs: Sequence[str]) -> dict[str, Any]:
        if model is None:
            raise UsageError("a job has weights and no code: say how the model is made, --model net.py:make")
        found = Job(self._connection, self._connection.ask("why", job=job)["job"])
        state = found.status()["state"]
        if state != "succeeded":
            raise UsageError(f"{found.id} is {state}: a model is taken from a training that has succeeded")
        with TemporaryDirectory(prefix="dmi-model-") as directory:
            weights = Path(directory) / "weights.safetensors"
            found.export(weights)
            return self._send(name, source_of(model, weights, inputs))

    def _send(self, name: str, source: Source) -> dict[str, Any]:
        paths = {file.blob: source.files[file.name] for file in source.content.files}
        request = {
            "request": secrets.token_hex(8),
            "name": name,
            "content": msgspec.to_builtins(source.content),
        }
        return self._upload("model-add", request, paths)

    def _upload(self, verb: str, args: dict[str, Any], paths: Mapping[BlobHash, Path]) -> dict[str, Any]:
        """Have a node take in those of the files that it has not, and gives what it answers."""
        size = sum(path.stat().st_size for path in paths.values())
        with self._connection.open() as talk:
            talk.send({"verb": verb, "args": args})
            for blob in talk.receive()["need"]:
                with paths[blob].open("rb") as file:
                    uploads.send(talk, uploads.pieces(file))
            found: dict[str, Any] = talk.receive(uploads.patience_s(size))["ok"]
            return found

    def versions(self) -> list[dict[str, Any]]:
        """Every version, by name and number."""
        found: list[dict[str, Any]] = self._connection.ask("models")
        return found

    def show(self, name: str) -> dict[str, Any]:
        """One version: ``name:number``, or the newest of ``name``."""
        found: dict[str, Any] = self._connection.ask("model", name=name)
        return found

    def remove(self, name: str) -> list[str]:
        """``name:number``, or all versions of ``name``, that no job uses; their files are freed. Gives their ids."""
        found: list[str] = self._connection.ask("model-rm", name=name, request=secrets.token_hex(8))["removed"]
        return found

    def cut(self, name: str, most_bytes: int) -> dict[str, Any]:
        """Cut a version (``name:number``, or the newest of ``name``) into as few stages as will do, each with at most so many
        bytes of weights; a cut into as few that there is already is taken. It is loaded once for that, by a child process on this
        host. Gives the version, as ``show`` does. Raises ``UsageError`` for a model that cannot be cut so."""
        found = self.show(name)
        if fits(found, most_bytes):
            return found
        with self._connection.open() as talk:
            talk.send({"verb": "model-files", "args": {"name": found["id"]}})
            given = talk.receive(uploads.patience_s(found["size_bytes"]))["ok"]
        with TemporaryDirectory(prefix="dmi-stages-") as directory:
            asked = {"content": given["content"], "files": given["files"], "most_bytes": most_bytes}
            answer = answer_of("dmi.models.cut", asked | {"directory": directory}, found["id"])
            return self._send_stages(found, answer)

    def _send_stages(self, version: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        paths: dict[BlobHash, Path] = {}

        def file(role: str, path: str) -> ModelFile:
            blob = hash_of(Path(path))
            paths[blob] = Path(path)
            return ModelFile(role, blob, paths[blob].stat().st_size)

        graph = file("graph", answer["graph"])
        stages = [
            ModelStage((graph, file("weights", each["weights"])), each["first"], each["last"], each["weight_bytes"])
            for each in answer["stages"]
        ]
        if len(stages) < 2:
            raise UsageError(
                f"{version['id']} has {stages[0].weight_bytes:,} bytes of weights, which fit: it need not be cut; say at "
                f"least {version['size_bytes']:,}, the size of its files"
            )
        args = {
            "request": secrets.token_hex(8),
            "name": version["id"],
            "hash": version["hash"],
            "stages": msgspec.to_builtins(stages),
        }
        return self._upload("model-cut", args, paths)

    # Of what is served

    def promote(self, name: str) -> dict[str, Any]:
        """Serve ``name:number``, or the newest of ``name``, from now on: replicas load it while they serve, and no request fails.
        Gives ``{"model", "version", "canary", "share", "pinned"}``, as the others do. Raises ``UnknownJobError`` where nothing is
        served so."""
        self._cut_alike(name)
        return self._serving("promote", name=name)

    def rollback(self, name: str) -> dict[str, Any]:
        """Serve what was served before, and take no newer version by itself from then on."""
        return self._serving("rollback", name=name)

    def pin(self, name: str, *, on: bool = True) -> dict[str, Any]:
        """Take no newer version by itself; with ``on`` false do so again."""
        return self._serving("pin", name=name, on=on)

    def canary(self, name: str, version: int | None, share: int = 10) -> dict[str, Any]:
        """Of a hundred requests that name no version ``share`` go to ``version``; None, and there is no canary any more."""
        if version is None:
            return self._serving("canary", name=name, share=0)
        self._cut_alike(f"{name}:{version}")
        return self._serving("canary", name=name, version=version, share=share)

    def _cut_alike(self, name: str) -> None:
        """A version that is to be served in stages is cut first."""
        model = name.partition(":")[0]
        served = (each for each in self._connection.ask("status")["deployments"] if each["model"] == model)
        found = next(served, None)
        if found is not None and found["stages"] > 1 and found["memory_per_replica"] is not None:
            self.cut(name, found["memory_per_replica"])

    def _serving(self, verb: str, **args: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._connection.ask(verb, request=secrets.token_hex(8), **args)
        return found


def fits(version: dict[str, Any], most_bytes: int) -> bool:
    """May a process hold all of this version; or is it cut so that it may hold each stage, and into no more than need be?"""
    able = [sizes for sizes in version["cuts"] if max(sizes) <= most_bytes]
    return version["size_bytes"] <= most_bytes or any(len(sizes) <= -(-sum(sizes) // most_bytes) for sizes in able)
