"""``mesh.infer``: submits a batch inference, follows it, and writes its results in the order of the inputs."""

import hashlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from dmi import uploads
from dmi.connection import Connection
from dmi.errors import NoNodeError, RefusedError, UsageError
from dmi.infer import columns
from dmi.infer import config as configuration
from dmi.infer.config import Config
from dmi.infer.plan import Plan, plan
from dmi.job import Job
from dmi.models.fitting import free_share
from dmi.models.library import Models
from dmi.share import share
from dmi.uploads import Contents
from dmi_protocol import limits
from dmi_protocol.model import TensorInfo

_PATIENCE_S = 20.0
"""For so long a node of this host is looked for."""
_AGAIN_S = 0.25
_BEGUN = ".infer.json"
_RESULTS, _RESULTS_PARQUET = "results.jsonl", "results.parquet"
_MANIFEST = "manifest.json"


class Begun(Struct, frozen=True):
    """What an output folder says of the job that will fill it."""

    plan: str
    model: str
    request: str
    job: str
    at_unix: float
    """When it was submitted first."""


class Patience:
    """With a host that has no node for the moment."""

    def __init__(self) -> None:
        self.heard()

    def heard(self) -> None:
        """A node answers."""
        self._heard_at = time.monotonic()

    def wait_s(self, error: NoNodeError) -> float:
        """How long to wait before a node is asked again; raises ``error`` when that has been too long."""
        if time.monotonic() - self._heard_at > _PATIENCE_S:
            raise error
        return _AGAIN_S


class Inference(Job):
    """A batch inference that was submitted. ``write`` waits for its end and writes the results."""

    def __init__(
        self, connection: Connection, identity: str, planned: Plan, model: dict[str, Any], out: Path, at_unix: float
    ) -> None:
        super().__init__(connection, identity)
        self.plan = planned
        self.model = model
        self.out = out
        self.results = out / (_RESULTS_PARQUET if planned.config.output.kind == "parquet" else _RESULTS)
        """The file of the results."""
        self._at_unix = at_unix

    def judge(self, last: dict[str, Any]) -> dict[str, Any]:
        """See ``Job.judge``. What will never have results leaves no folder behind, so the same command may be given again."""
        if last["state"] in {"failed", "cancelled"}:
            _forget(self.out)
        return super().judge(last)

    def write(self) -> dict[str, Any]:
        """Wait; write ``results.jsonl`` and ``manifest.json``; gives the manifest. Raises ``JobFailedError``."""
        last: dict[str, Any] = {}
        for event in self.progress():
            last = event
        self.judge(last)
        return self.collect()

    def progress(self) -> Iterator[dict[str, Any]]:
        """The job's object whenever it changes, until it has ended. When the node that is asked goes, another one is, where this
        host has one. Raises ``NoNodeError``."""
        patience = Patience()
        while True:
            try:
                for event in self.events():
                    patience.heard()
                    yield event
            except NoNodeError as error:
                time.sleep(patience.wait_s(error))
            else:
                return

    def collect(self) -> dict[str, Any]:
        """Write the results of a job that has succeeded. Nothing half-written is ever under its final name."""
        patience = Patience()
        while True:
            try:
                return self._collect()
            except NoNodeError as error:
                time.sleep(patience.wait_s(error))

    def _collect(self) -> dict[str, Any]:
        partial = self.out / f".{_RESULTS}"
        machine: dict[str, str] = {}
        causes, slices = Counter[str](), list[dict[str, Any]]()
        with partial.open("wb") as file:
            for item in self._connection.stream("results", dict, job=self.id):
                if "machine" in item:
                    machine = item["machine"]
                elif "data" not in item:
                    slices.append(item)
                else:
                    file.write(item["data"])
        with partial.open("rb") as file:
            causes.update(_causes(file))
        output = self._put(partial)
        seconds = time.time() - self._at_unix
        manifest = {
            "job": self.id,
            "model": {"id": self.model["id"], "hash": self.model["hash"]},
            "inputs": self.plan.listing.total,
            "failed": sum(found["failed"] for found in slices),
            "errors": dict(causes.most_common()),
            "hashes": {
                "inputs": hashlib.sha256(msgspec.msgpack.encode(self.plan.listing)).hexdigest(),
                "configuration": hashlib.sha256(msgspec.json.encode(self.plan.config)).hexdigest(),
                "output": output,
            },
            "machine": machine,
            "threads": self.plan.config.threads,
            "seconds": round(seconds, 3),
            "inputs_per_second": round(self.plan.listing.total / max(seconds, 1e-3), 1),
            "slices": slices,
        }
        temporary = self.out / f".{_MANIFEST}"
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.replace(self.out / _MANIFEST)
        (self.out / _BEGUN).unlink(missing_ok=True)
        return manifest

    def _put(self, partial: Path) -> str:
        """What was collected, under its final name, in the form that was asked for; gives its SHA-256."""
        if self.plan.config.output.kind == "parquet":
            made = self.out / f".{_RESULTS_PARQUET}"
            outputs = msgspec.convert(self.model["outputs"], tuple[TensorInfo, ...])
            columns.write(partial, made, columns.schema_of(self.plan.config, outputs))
            partial.unlink()
            partial = made
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        partial.replace(self.results)
        return digest


def _causes(file: Iterator[bytes]) -> Iterator[str]:
    """The causes of error rows, without what is particular to one input."""
    for line in file:
        if b'"error": ' in line:
            error = json.loads(line).get("error")
            if isinstance(error, str):
                yield error.partition(":")[0]


def infer(
    connection: Connection,
    given: str | Path | dict[str, Any] | Config,
    out: str | Path,
    *,
    nodes: int | None = None,
    cpus: int | None = None,
    memory: int | str | None = None,
    resume: bool = False,
) -> Inference:
    """Submit what ``given`` (a file, or the configuration itself) says; returns once the job is committed.

    ``out`` must not exist, or with ``resume`` be one that the same configuration, inputs and model began. ``cpus`` and ``memory``
    stand for those of the configuration.
    """
    config = _read(given)
    said = {name: value for name, value in (("cpus", cpus), ("memory", memory)) if value is not None}
    config = msgspec.structs.replace(config, **said)
    return _begin(connection, config, plan(config), Path(out), nodes=nodes, resume=resume)


def dry_run(connection: Connection, given: str | Path | dict[str, Any] | Config) -> dict[str, Any]:
    """What would be read, and the rows of the first batch, which is computed: ``{"path", "inputs", "batches", "slices",
    "rows"}``."""
    config = _read(given)
    planned = plan(config)
    one = msgspec.structs.replace(config, output=msgspec.structs.replace(config.output, kind="jsonl"))
    with TemporaryDirectory(prefix="dmi-infer-") as folder:
        inference = _begin(connection, one, plan(one, of_one_batch=True), Path(folder), nodes=1, resume=False)
        inference.write()
        rows = [json.loads(line) for line in inference.results.read_text().splitlines()]
    return {
        "path": planned.config.input.path,
        "inputs": planned.listing.total,
        "batches": planned.batches,
        "slices": planned.slices,
        "rows": rows,
    }


class _Packed(NamedTuple):
    blob: str
    size: int


def _packs(planned: Plan) -> list[_Packed]:
    """The inputs of each slice. They are packed again when they are sent: nothing is written to this host's disk."""
    found = []
    for slice_ in range(planned.slices):
        digest, size = hashlib.sha256(), 0
        for piece in planned.pack(slice_):
            digest.update(piece)
            size += len(piece)
        found.append(_Packed(digest.hexdigest(), size))
    return found


def _read(given: str | Path | dict[str, Any] | Config) -> Config:
    if isinstance(given, Config):
        return given
    return configuration.of(given) if isinstance(given, dict) else configuration.read(given)


def _begin(
    connection: Connection, found: Config, planned: Plan, folder: Path, *, nodes: int | None, resume: bool
) -> Inference:
    columns.check(found)
    model = _model(connection, found.model)
    held_bytes = found.held_bytes or free_share(connection, model)
    if held_bytes is not None:
        model = Models(connection).cut(model["id"], held_bytes)
    columns.top_of(found, msgspec.convert(model["outputs"], tuple[TensorInfo, ...]))
    begun = _begun(folder, planned, model["id"], resume=resume)
    if begun is None:
        begun = Begun(planned.hash, model["id"], secrets.token_hex(8), "", time.time())
        folder.mkdir(parents=True, exist_ok=True)
        _remember(folder, begun)
    packs = _packs(planned) if found.input.travels else []
    files: dict[str, Contents] = {pack.blob: partial(planned.pack, slice_) for slice_, pack in enumerate(packs)}
    files[planned.hash] = lambda: [planned.data]
    spec = {
        "kind": "batch",
        "name": f"infer-{model['name']}"[: limits.NAME_CHARACTERS],
        "model": model["id"],
        "inputs": planned.listing.total,
        "slice_inputs": planned.slice_inputs,
        "replicas": nodes,
        "per_node": found.replicas_per_node,
        "threads": found.threads,
        **share(found.cpus, found.memory),
        "memory_per_replica": held_bytes,
        "packs": [pack.blob for pack in packs],
    }
    args = {"request": begun.request, "spec": spec, "bundle": planned.hash, "size": len(planned.data)}
    args["pack_sizes"] = {pack.blob: pack.size for pack in packs}
    try:
        job = uploads.submit(connection, args, files, len(planned.data) + sum(pack.size for pack in packs))
    except (
        RefusedError,
        UsageError,
    ):  # nothing was submitted; after any other end it may have been, and --resume finds it
        if not begun.job:
            _forget(folder)
        raise
    _remember(folder, msgspec.structs.replace(begun, job=job))
    return Inference(connection, job, planned, model, folder, begun.at_unix)


def _model(connection: Connection, name: str) -> dict[str, Any]:
    """A model of the mesh; or a file, which is added under its name."""
    models = Models(connection)
    path = Path(name)
    if path.suffix and path.is_file():
        return _known(models, path) or models.add(path.stem, path)
    found: dict[str, Any] = models.show(name)
    return found


def _known(models: Models, path: Path) -> dict[str, Any] | None:
    """The version that this very file is, if the mesh has it: it need not be tried again."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((v for v in models.versions() if v["name"] == path.stem and v["files"] == {"model": digest}), None)


def _begun(folder: Path, planned: Plan, model: str, *, resume: bool) -> Begun | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not resume:
        raise RefusedError(f"{folder} is there already: name another --out, or go on with what began it: --resume")
    try:
        begun = msgspec.json.decode((folder / _BEGUN).read_bytes(), type=Begun)
    except (OSError, msgspec.MsgspecError) as error:
        if (folder / _MANIFEST).exists():
            raise RefusedError(f"{folder} is finished: name another --out") from error
        raise RefusedError(f"{folder} was not begun by an inference: name another --out") from error
    if (begun.plan, begun.model) != (planned.hash, model):
        raise RefusedError(
            f"{folder} was begun with another configuration, other inputs or another model: name another --out"
        )
    return begun


def _forget(folder: Path) -> None:
    """The folder is as it was before."""
    (folder / _BEGUN).unlink(missing_ok=True)
    with suppress(OSError):  # what else is in it is not ours
        folder.rmdir()


def _remember(folder: Path, begun: Begun) -> None:
    temporary = folder / f"{_BEGUN}.new"
    temporary.write_bytes(msgspec.json.encode(begun))
    temporary.replace(folder / _BEGUN)
