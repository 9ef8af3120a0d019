"""The mesh as its user sees it: ask any node of it."""

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dmi import bundle, uploads
from dmi.connection import Connection, Stream
from dmi.infer.client import Inference, dry_run, infer
from dmi.job import Job
from dmi.models.library import Models


def connect(home: str | Path | None = None) -> "Mesh":
    """The mesh of the node at ``home`` (by default ``DMI_HOME``, or the service's home). Raises ``NoNodeError``."""
    mesh = Mesh(Connection(home))
    mesh.version()
    return mesh


class Mesh:
    """Made by ``connect``. Every method raises ``NoNodeError`` when the node has gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.models = Models(connection)

    def submit(
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
        include: Iterable[str | Path] = (),
    ) -> Job:
        """Train ``script`` on the mesh; returns once the job is committed and its files are on two nodes.

        ``workers`` and ``servers`` are by default as many as there are nodes. Raises ``UsageError``, ``RefusedError``,
        ``NoQuorumError``.
        """
        made = bundle.make(script, include)
        spec = {
            "kind": "training",
            "name": name or Path(script).stem,
            "script": made.script,
            "args": [str(argument) for argument in args],
            "workers": workers,
            "servers": servers,
            "backups": backups,
            "leaves": leaves,
            "threads": threads,
        }
        request = {"request": secrets.token_hex(8), "spec": spec, "bundle": made.hash, "size": len(made.data)}
        files = {made.hash: lambda: [made.data]}
        return Job(self._connection, uploads.submit(self._connection, request, files, len(made.data)))

    def infer(
        self, config: str | Path | dict[str, Any], out: str | Path, *, nodes: int | None = None, resume: bool = False
    ) -> Inference:
        """Compute ``config`` (a JSON or TOML file, or what stands in one) on the mesh; returns once the job is committed.

        ``write()`` of what is returned waits, and writes ``results.jsonl`` (or ``results.parquet``) and ``manifest.json`` into
        the folder ``out``, which must not exist; with ``resume`` it may be one that was begun in the same way. ``nodes`` is how
        many compute, by default all. Raises ``UsageError``, ``RefusedError``, ``NoQuorumError``.
        """
        return infer(self._connection, config, out, nodes=nodes, resume=resume)

    def dry_run(self, config: str | Path | dict[str, Any]) -> dict[str, Any]:
        """What ``infer`` would read, and the rows of the first batch, which is computed: ``{"path", "inputs", "batches",
        "slices", "rows"}``. Raises what ``infer`` and ``write`` raise."""
        return dry_run(self._connection, config)

    def job(self, name: str) -> Job:
        """A job by its id, a prefix of it, or its name. Raises ``UnknownJobError``."""
        return Job(self._connection, self._connection.ask("why", job=name)["job"])

    def status(self) -> dict[str, Any]:
        """The whole mesh; ``docs/json.md`` has the shape."""
        found: dict[str, Any] = self._connection.ask("status")
        return found

    def watch(self) -> Stream[dict[str, Any]]:
        """``status`` whenever it changes, at most five times a second."""
        return self._connection.stream("watch", dict)

    def members(self) -> list[dict[str, Any]]:
        """The members."""
        found: list[dict[str, Any]] = self._connection.ask("members")
        return found

    def roles(self) -> list[dict[str, Any]]:
        """The role processes of all jobs that go on."""
        found: list[dict[str, Any]] = self._connection.ask("roles")
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs, oldest first."""
        found: list[dict[str, Any]] = self._connection.ask("jobs")
        return found

    def disks(self) -> list[dict[str, Any]]:
        """What lies on the disk of each member, in bytes; ``docs/json.md`` has the shape. A member that does not answer has only
        its name."""
        found: list[dict[str, Any]] = self._connection.ask("df")
        return found

    def invite(self, ttl_s: int = 3600) -> dict[str, Any]:
        """A token that lets one new node join: ``{"token", "expires_unix"}``."""
        found: dict[str, Any] = self._connection.ask("invite", ttl_s=ttl_s)
        return found

    def leave(self) -> None:
        """The node that answers leaves the mesh, and ends."""
        self._connection.ask("leave")

    def drain(self, node: str, *, on: bool = True) -> dict[str, Any]:
        """A member (name or id) gives all its roles away and gets no new ones; with ``on`` false it may have some again.

        Returns at once, with ``{"name", "id", "roles"}``: call it again until no roles are left there.
        """
        found: dict[str, Any] = self._connection.ask("drain", node=node, on=on)
        return found

    def expel(self, node: str) -> dict[str, Any]:
        """A member (name or id) is one no more: its key counts nowhere, on open connections too. Gives ``{"name", "id"}``."""
        found: dict[str, Any] = self._connection.ask("expel", node=node)
        return found

    def stop(self) -> None:
        """The node that answers ends in good order; it stays a member."""
        self._connection.ask("stop")

    def version(self) -> str:
        """The version of the node that answers."""
        found: str = self._connection.ask("version")["version"]
        return found
