"""The mesh as its user sees it: ask any node of it."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmi import bundle, uploads
from dmi.connection import Connection, Stream
from dmi.errors import UsageError
from dmi.infer.client import Inference, dry_run, infer
from dmi.job import Job
from dmi.models.fitting import free_share
from dmi.models.library import Models
from dmi.serve.client import Deployment, predict, serve
from dmi.share import share
from dmi_protocol import limits


def connect(home: str | Path | None = None, *, token: str | None = None) -> "Mesh":
    """The mesh of the node at ``home`` (by default ``DMI_HOME``, or the service's home). ``token`` is what ``predict`` shows to
    gateways that others than this host can reach; ``DMI_TOKEN`` without it. Raises ``NoNodeError``."""
    mesh = Mesh(Connection(home), token)
    mesh.version()
    return mesh


class Mesh:
    """Made by ``connect``. Every method raises ``NoNodeError`` when the node has gone."""

    def __init__(self, connection: Connection, token: str | None = None) -> None:
        self._connection = connection
        self._token = token
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
        cpus: int | None = None,
        memory: int | str | None = None,
        include: Iterable[str | Path] = (),
        root: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        python: str | None = None,
    ) -> Job:
        """Train ``script`` on the mesh; returns once the job is committed and its files are on two nodes.

        ``workers`` and ``servers`` are by default as many as there are nodes. ``cpus`` processors and ``memory`` (bytes, or
        "2GB") are what its processes have together on each of its nodes: it is placed where so much is left, and held to it.

        ``include`` are files and folders that travel with it; ``root`` is a folder above the script, all of which travels and
        from which modules are imported, too. Of folders, repositories, virtual environments and caches stay at home. ``env`` are
        variables that the script finds in its environment, ``python`` the interpreter that runs it on each host.

        Raises ``UsageError``, ``RefusedError``, ``NoQuorumError``.
        """
        made = bundle.make(script, include, root)
        spec = {
            "kind": "training",
            "name": name or Path(script).stem[: limits.NAME_CHARACTERS],
            "script": made.script,
            "args": [str(argument) for argument in args],
            "workers": workers,
            "servers": servers,
            "backups": backups,
            "leaves": leaves,
            "threads": threads,
            "env": list((env or {}).items()),
            "python": python,
            **share(cpus, memory),
        }
        _check_text(args, env or {})
        request = {"request": secrets.token_hex(8), "spec": spec, "bundle": made.hash, "size": len(made.data)}
        files = {made.hash: lambda: [made.data]}
        job = Job(self._connection, uploads.submit(self._connection, request, files, len(made.data)))
        job.left_at_home = made.left
        return job

    def infer(
        self,
        config: str | Path | dict[str, Any],
        out: str | Path,
        *,
        nodes: int | None = None,
        cpus: int | None = None,
        memory: int | str | None = None,
        resume: bool = False,
    ) -> Inference:
        """Compute ``config`` (a JSON or TOML file, or what stands in one) on the mesh; returns once the job is committed.

        ``write()`` of what is returned waits, and writes ``results.jsonl`` (or ``results.parquet``) and ``manifest.json`` into
        the folder ``out``, which must not exist; with ``resume`` it may be one that was begun in the same way. ``nodes`` is how
        many compute, by default all; ``cpus`` and ``memory`` stand for those of the configuration. Raises ``UsageError``,
        ``RefusedError``, ``NoQuorumError``.
        """
        return infer(self._connection, config, out, nodes=nodes, cpus=cpus, memory=memory, resume=resume)

    def dry_run(self, config: str | Path | dict[str, Any]) -> dict[str, Any]:
        """What ``infer`` would read, and the rows of the first batch, which is computed: ``{"path", "inputs", "batches",
        "slices", "rows"}``. Raises what ``infer`` and ``write`` raise."""
        return dry_run(self._connection, config)

    def serve(
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
        """Serve ``model`` (a name, or ``name:number``) on the mesh; returns once that is committed: ``ready()`` of what is
        returned waits until it serves, and gives the URLs.

        ``replicas`` compute (two by default); with "auto" they follow the load, between ``least`` (1) and ``most`` (as many as
        nodes), and with 0 they sleep until the first request, and when nobody has asked for a minute. ``gateways`` is how many
        nodes take requests in (all by default, up to 8). A request waits for others, to be computed with them, only while every
        replica is busy, and at most ``max_wait_ms``; with ``exact`` it is computed alone. With ``follow``, a training, each
        version that it publishes is taken, and with ``every`` each so-manieth of its checkpoints made one, of a model that a
        function makes. With ``certificate`` and ``certificate_key``, files on every host with a gateway, gateways speak TLS. A
        model with more than ``memory_per_replica`` bytes of weights is cut into stages (``Models.cut``) on as many nodes, which
        compute one after another; there are ``replicas`` of each stage. By default that is what is free on the nodes, where none
        has memory for all of the model. ``cpus`` processors and ``memory`` (bytes, or "2GB") are what each replica has: it is
        placed where so much is left, and held to it.

        Raises ``UnknownJobError`` for a model or a training that there is not, ``RefusedError`` (it is served already),
        ``UsageError``, ``NoQuorumError``.
        """
        name = model if version is None else f"{model}:{version}"
        memory_per_replica = memory_per_replica or free_share(self._connection, self.models.show(name))
        if memory_per_replica is not None:
            self.models.cut(name, memory_per_replica)
        return serve(
            self._connection,
            name,
            **_replicas(replicas, least, most, len(self.members())),
            gateways=gateways,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            exact=exact,
            port=port,
            certificate=certificate,
            certificate_key=certificate_key,
            threads=threads,
            **share(cpus, memory),
            follow=follow,
            every=every,
            memory_per_replica=memory_per_replica,
        )

    def unserve(self, model: str) -> str:
        """Serve it no more; gives the job. Raises ``UnknownJobError``."""
        found: str = self._connection.ask("unserve", name=model, request=secrets.token_hex(8))["id"]
        return found

    def predict(
        self, name: str, inputs: Any, *, version: int | None = None, timeout_s: float = 30.0, token: str | None = None
    ) -> Any:
        """Ask what is served under ``name``. ``inputs`` is a NumPy array, a torch tensor or nested lists for the model's one
        input, or a dict of such by the inputs' names; the first dimension counts the inputs. Gives the one output, or a dict of
        all: tensors where a tensor was given, arrays otherwise (bfloat16 as float32). Asks another gateway where one is gone.
        Gateways that are not on loopback want a ``token``: this one, or that of ``connect``, or ``DMI_TOKEN``.

        Raises ``UnknownJobError`` where nothing is served so, ``RefusedError`` for inputs that the model does not take,
        ``dmi.serve.client.NotAnsweredError`` when there is no answer within ``timeout_s``.
        """
        return predict(self._connection, name, inputs, version=version, timeout_s=timeout_s, token=token or self._token)

    def deployments(self) -> list[dict[str, Any]]:
        """What is served; ``docs/json.md`` has the shape."""
        found: list[dict[str, Any]] = self._connection.ask("status")["deployments"]
        return found

    def tokens(self) -> list[dict[str, Any]]:
        """The tokens that let one ask gateways: ``{"name", "scope", "added_unix"}`` of each."""
        found: list[dict[str, Any]] = self._connection.ask("tokens")
        return found

    def add_token(self, name: str, scope: str = "infer") -> dict[str, Any]:
        """Make one: ``{"name", "scope", "token"}``. It is shown this once. Raises ``RefusedError`` for a name that is taken."""
        found: dict[str, Any] = self._connection.ask("token-add", name=name, scope=scope, request=secrets.token_hex(8))
        return found

    def remove_token(self, name: str) -> None:
        """It lets nobody in any more. Raises ``RefusedError`` where there is none of that name."""
        self._connection.ask("token-rm", name=name, request=secrets.token_hex(8))

    def job(self, name: str) -> Job:
        """A job by its id, a prefix of it, or its name. Raises ``UnknownJobError``."""
        return Job(self._connection, self._connection.ask("why", job=name)["job"])

    def status(self) -> dict[str, Any]:
        """The whole mesh; ``docs/json.md`` has the shape."""
        found: dict[str, Any] = self._connection.ask("status")
        return found

    def watch(self) -> Stream[dict[str, Any]]:
        """``status`` whenever it changes, at most five times a second."""
        return self._connection.stream("watch", dict, dict)

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


def _check_text(args: Iterable[str], env: Mapping[str, str]) -> None:
    for value in (*map(str, args), *env.keys(), *env.values()):
        try:
            value.encode()
        except UnicodeEncodeError:
            told = value.encode(errors="surrogateescape")
            raise UsageError(
                f"{told!r} is no UTF-8 text, and cannot travel to other hosts: write it in UTF-8"
            ) from None


def _replicas(replicas: int | str | None, least: int | None, most: int | None, nodes: int) -> dict[str, Any]:
    """What is said of them to a node. Raises ``UsageError``."""
    if replicas == "auto" or replicas == 0:
        first = 0 if replicas == 0 else 1
        return {"least": first if least is None else least, "most": most or max(nodes, least or 1)}
    if isinstance(replicas, str):
        raise UsageError(f"replicas is a number or 'auto', not {replicas!r}")
    if least is not None or most is not None:
        raise UsageError("the least and the most replicas are for those that follow the load: replicas='auto'")
    return {"replicas": replicas}
