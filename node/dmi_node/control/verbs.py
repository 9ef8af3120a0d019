"""What can be asked of a node on its control socket."""

import asyncio
import difflib
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from dmi_node import clock
from dmi_node.control import checks
from dmi_node.control.models import ModelVerbs
from dmi_node.control.printed import Printed
from dmi_node.control.server import Client, RefusalError, Verb
from dmi_node.control.serving import ServingVerbs
from dmi_node.control.tokens import TokenVerbs
from dmi_node.control.uploads import Uploads
from dmi_node.joining import Invitation
from dmi_node.storage.blobs import Blobs
from dmi_node.transport.fetching import NoSourceError
from dmi_node.transport.library import Library
from dmi_protocol import limits, reasons
from dmi_protocol.cluster.command import Cancel, Command, Drain, Invite, Remove, RemoveJob, Submit
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.effects import Answer
from dmi_protocol.identity import BlobHash, JobId, NodeId, RequestId
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.kinds.job import ENDED, SUCCEEDED
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.peer import Peer
from dmi_protocol.placement.holding import only_here
from dmi_protocol.sentences import sentence
from dmi_protocol.view import JobView, View
from dmi_wire.keys import KeyPair

_WITHIN_MS = 10_000
_UNDECIDED = reasons.NoQuorum | reasons.NoCoordinator | reasons.TimedOut | reasons.DiskFull
_LOG_S = 0.3
_WATCH_S = 0.2


class Changing(Protocol):
    """Something that changes."""

    count: int
    """How often it has changed."""

    async def wait(self, since: int) -> None:
        """Until it has changed after it had changed ``since`` times."""
        ...


class Node(Protocol):
    """The daemon, as far as verbs need it."""

    peer: Peer
    blobs: Blobs
    library: Library

    @property
    def changed(self) -> Changing:
        """What the peer shows."""
        ...

    async def ask(self, command: Command, within_ms: int) -> Answer:
        """Have ``command`` agreed."""
        ...

    async def pin(self, blob: BlobHash) -> None:
        """The blob stays here for a while, if it is here."""
        ...

    def sources(self, holders: Iterable[NodeId]) -> list[NodeId]:
        """Whom a blob is fetched from: first those who are well."""
        ...

    def refused(self) -> Mapping[str, int]:
        """What was refused, by reason."""
        ...

    def set_aside(self) -> Mapping[str, str]:
        """What ended this node before and is left alone."""
        ...

    def end(self) -> None:
        """End the daemon in good order."""
        ...


class Verbs:
    """Every method is a verb of the control socket; ``docs/json.md`` has the shapes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._uploads = Uploads(node)
        self._models = ModelVerbs(node, self._uploads, self._state, self._ask)
        self._tokens = TokenVerbs(self._state, self._ask)
        self._serving = ServingVerbs(self._state, self._ask, lambda name: self._job(name).id)

    def table(self) -> dict[str, Verb]:
        """Every verb by its name."""
        return {
            "status": self.status,
            "members": self.members,
            "roles": self.roles,
            "jobs": self.jobs,
            "why": self.why,
            "submit": self.submit,
            "cancel": self.cancel,
            "job-rm": self.remove_job,
            "logs": self.logs,
            "events": self.events,
            "watch": self.watch,
            "export": self.export,
            "results": self.results,
            "invite": self.invite,
            "leave": self.leave,
            "drain": self.drain,
            "expel": self.expel,
            "stop": self.stop,
            "version": self.version,
            **self._models.table(),
            **self._serving.table(),
            **self._tokens.table(),
        }

    # Questions

    def _view(self) -> View:
        return self._node.peer.view(clock.now())

    def _status(self) -> dict[str, Any]:
        view = self._view()
        plain: dict[str, Any] = msgspec.to_builtins(view)
        plain["refused"] = dict(self._node.refused())
        plain["set_aside"] = dict(self._node.set_aside())
        plain["jobs"] = [_job(job) for job in view.jobs]
        for member in plain["members"]:
            member["roles"] = [{key: role[key] for key in ("job", "role", "pid")} for role in member["roles"]]
        return plain

    async def status(self, client: Client, args: dict[str, Any]) -> object:
        return self._status()

    async def members(self, client: Client, args: dict[str, Any]) -> object:
        return self._status()["members"]

    async def jobs(self, client: Client, args: dict[str, Any]) -> object:
        return self._status()["jobs"]

    async def roles(self, client: Client, args: dict[str, Any]) -> object:
        found = []
        for member in self._view().members:
            for role in member.roles:
                plain = msgspec.to_builtins(role)
                plain["role"], plain["index"] = role.role.split("-")
                plain["index"] = int(plain["index"])
                plain["shards"] = [{"shard": shard, "primary": primary} for shard, primary in role.shards]
                found.append(plain)
        return found

    async def why(self, client: Client, args: dict[str, Any]) -> object:
        job = self._job(args["job"])
        shown = next(view for view in self._view().jobs if view.id == job.id)
        return {"job": job.id, "state": job.state, "sentence": shown.sentence, "detail": shown.detail}

    async def version(self, client: Client, args: dict[str, Any]) -> object:
        return {"version": self._node.peer.me.version}

    async def watch(self, client: Client, args: dict[str, Any]) -> AsyncGenerator[object, None]:
        last = None
        while True:
            since, seen = self._node.changed.count, self._status()
            if seen != last:
                last = seen
                yield seen
            await asyncio.sleep(_WATCH_S)
            await self._node.changed.wait(since)

    async def events(self, client: Client, args: dict[str, Any]) -> AsyncGenerator[object, None]:
        job, last = self._job(args["job"]), None
        while True:
            since = self._node.changed.count
            seen = next((_job(view) for view in self._view().jobs if view.id == job.id), None)
            if seen is None:
                return
            if seen != last:
                last = seen
                yield seen
            if seen["state"] in ENDED:
                return
            await self._node.changed.wait(since)
            await asyncio.sleep(_WATCH_S / 4)

    def _state(self) -> ClusterState:
        state = self._node.peer.state
        if state is None:
            raise RefusalError("no-quorum", "this node has not heard from its mesh yet; ask again in a moment")
        return state

    def _job(self, name: str) -> AnyJob:
        """By id, by a prefix of it, or by name when that is unique; the newest of equal names."""
        jobs = self._state().jobs
        if name in jobs:
            return jobs[JobId(name)]
        found = [job for job in jobs.values() if job.id.startswith(name) and name] or []
        named = [job for job in jobs.values() if job.spec.name == name]
        if len(found) == 1 and not named:
            return found[0]
        if named:
            return max(named, key=lambda job: job.submitted_at)
        near = difflib.get_close_matches(name, [*jobs, *(job.spec.name for job in jobs.values())], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RefusalError("unknown", sentence(reasons.UnknownJob(name)) + hint)

    # Changes

    async def _ask(self, command: Command, within_ms: int = _WITHIN_MS) -> str:
        answer = await self._node.ask(command, within_ms)
        if answer.refusal is not None:
            kind = "no-quorum" if isinstance(answer.refusal, _UNDECIDED) else "refused"
            raise RefusalError(kind, sentence(answer.refusal))
        return answer.value

    async def submit(self, client: Client, args: dict[str, Any]) -> object:
        request = checks.request(args["request"])
        spec = checks.spec(args["spec"], self._state())
        blob, size = checks.bundle(args["bundle"], args["size"])
        files = {blob: size, **checks.packs(args.get("pack_sizes", {}), spec)}
        holders = await self._uploads.take(client, files, "the job's files")
        return {"id": await self._ask(Submit(request, spec, blob, holders))}

    async def cancel(self, client: Client, args: dict[str, Any]) -> object:
        request, job = checks.request(args["request"]), self._job(args["job"])
        await self._ask(Cancel(request, job.id))
        return {"id": job.id}

    async def remove_job(self, client: Client, args: dict[str, Any]) -> object:
        request, job = checks.request(args["request"]), self._job(args["job"])
        await self._ask(RemoveJob(request, job.id))
        return {"id": job.id}

    async def invite(self, client: Client, args: dict[str, Any]) -> object:
        keys, expires = KeyPair.make(), clock.unix() + checks.seconds(args["ttl_s"])
        await self._ask(Invite(RequestId(secrets.token_hex(8)), keys.public, expires))
        state, peer = self._state(), self._node.peer
        first = [state.members[peer.me.node]] if peer.me.node in state.members else []
        others = [m for m in state.members.values() if m.node != peer.me.node and m.node in peer.alive()]
        nodes = tuple((member.address, member.public_key) for member in [*first, *others][:5])
        return {"token": Invitation(state.mesh, nodes, keys.secret, expires).token(), "expires_unix": expires}

    async def leave(self, client: Client, args: dict[str, Any]) -> object:
        await self._ask(Remove(RequestId(secrets.token_hex(8)), self._node.peer.me.node))
        self._node.end()
        return None

    def _member(self, name: str) -> MemberRecord:
        """A member by name or id."""
        members = self._state().members.values()
        found = next((m for m in members if m.name == name), None) or next((m for m in members if m.node == name), None)
        if found is None:
            near = difflib.get_close_matches(name, [member.name for member in members], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RefusalError("unknown", sentence(reasons.UnknownMember(name[:80])) + hint)
        return found

    async def drain(self, client: Client, args: dict[str, Any]) -> object:
        """A member gives its roles away, or may have some again; gives how many it still has, and of how many blobs the
        others have too few copies without it."""
        found, on = self._member(str(args["node"])), bool(args["on"])
        if found.draining != on:
            await self._ask(Drain(RequestId(secrets.token_hex(8)), found.node, on))
        left = [
            role for job in self._state().jobs.values() if job.goes_on for role, n in job.roles() if n == found.node
        ]
        copies = only_here(self._state(), found.node)
        return {"name": found.name, "id": found.node, "roles": len(left), "copies": len(copies)}

    async def expel(self, client: Client, args: dict[str, Any]) -> object:
        """By name or id; whoever it is hears so, and its key counts no more."""
        members = self._state().members.values()
        found = self._member(str(args["node"]))
        if found.node == self._node.peer.me.node:
            refusal = reasons.IsYourself(found.name, is_last=len(members) == 1)
            raise RefusalError("refused", sentence(refusal))
        await self._ask(Remove(RequestId(secrets.token_hex(8)), found.node))
        return {"name": found.name, "id": found.node}

    async def stop(self, client: Client, args: dict[str, Any]) -> object:
        self._node.end()
        return None

    # What role processes made

    async def logs(self, client: Client, args: dict[str, Any]) -> AsyncGenerator[object, None]:
        """Lines as they come, each with its process, and with the place in its log from which ``offsets`` would go on; of a line
        that has no end yet what it shows. A node whose lines cannot be had is a line, too, without a place."""
        job, follow = self._job(args["job"]), bool(args.get("follow"))
        printed = {log: Printed(offset) for log, offset in checks.offsets(args.get("offsets", {})).items()}
        away: set[NodeId] = set()
        while True:
            found = self._state().jobs.get(job.id, job)
            is_last = found.state in ENDED or not follow
            something = False
            texts = await self._texts(found, printed)
            silent = {node for node, its in texts.items() if its is None}
            for node in sorted(silent - away):
                yield {"worker": self._name(node), "line": f"[{self._absence(node)}]"}
            away = silent
            for node, its in texts.items():
                for process, (start, data) in (its or {}).items():
                    something = True
                    text = printed.setdefault(f"{node}/{process}", Printed())
                    for line in text.take(start, data, time.monotonic()):
                        yield self._line(f"{node}/{process}", line, text)
            if is_last and not something:
                break
            for log, text in printed.items() if follow else ():
                for line in text.standing(time.monotonic()):
                    yield self._line(log, line, text)
            if not something:
                await asyncio.sleep(_LOG_S)
        for log, text in printed.items():
            for line in text.end():
                yield self._line(log, line, text)

    def _line(self, log: str, line: str, text: Printed) -> dict[str, Any]:
        node, _, process = log.partition("/")
        worker = f"{process.partition('/')[2]}@{self._name(NodeId(node))}"
        return {"worker": worker, "line": line, "log": log, "offset": text.shown_to}

    async def _texts(
        self, job: AnyJob, printed: Mapping[str, Printed]
    ) -> dict[NodeId, dict[str, tuple[int, bytes]] | None]:
        """What each host of a job has of its logs, from where we have read to; None where it cannot be had."""
        hosts = sorted({*job.hosts, *(node for _, node in job.roles())})
        asked = []
        nodes = [node for node in hosts if self._node.peer.standing(node) in {"alive", "suspect"}]
        for node in nodes:
            own = {log.removeprefix(f"{node}/"): text.offset for log, text in printed.items() if log.startswith(node)}
            here = None if node == self._node.peer.me.node else node
            asked.append(self._node.library.log(here, job.id, own))
        return dict.fromkeys(hosts) | dict(zip(nodes, await asyncio.gather(*asked), strict=True))

    def _absence(self, node: NodeId) -> str:
        if node not in self._state().members:
            return f"{node} is no member any more: what its processes printed stays on its disk"
        standing = self._node.peer.standing(node)
        how = {"dead": "is dead", "left": "is down"}.get(standing, "does not answer")
        return f"{self._name(node)} {how}: lines that processes printed there are missing here until it is back"

    def _name(self, node: NodeId) -> str:
        member = self._state().members.get(node)
        return member.name if member is not None else node

    async def export(self, client: Client, args: dict[str, Any]) -> object:
        job = self._job(args["job"])
        if not isinstance(job, TrainingJob):
            raise RefusalError(
                "refused", f"{job.id} trains nothing: `dmi-node infer` writes the results of a batch inference"
            )
        if job.checkpoint is None:
            raise RefusalError("refused", f"{job.id} is {job.state} and has written no parameters yet")
        paths = []
        for part in job.checkpoint.parts:
            try:
                await self._node.library.fetch(part.blob, self._node.sources(part.nodes))
            except (NoSourceError, OSError) as error:
                where = " and ".join(self._name(node) for node in part.nodes)
                raise RefusalError("refused", f"shard {part.shard} of {job.id} is on {where}: {error}") from error
            paths.append(str(self._node.blobs.path(part.blob)))
        return {"parts": paths, "step": job.checkpoint.step, "final": job.final}

    async def results(self, client: Client, args: dict[str, Any]) -> AsyncGenerator[object, None]:
        """Of a batch inference that has succeeded: each slice's bytes, in order, and after them what is known of it."""
        job = self._job(args["job"])
        if not isinstance(job, BatchJob):
            raise RefusalError("refused", f"{job.id} is no batch inference: `dmi-node export` writes what was trained")
        if job.state != SUCCEEDED:
            raise RefusalError("refused", f"{job.id} is {job.state} and has no results yet")
        yield {"machine": dict(job.machine)}
        for slice_, result in sorted(job.results.items()):
            await self._node.pin(result.blob)
            try:
                await self._node.library.fetch(result.blob, self._node.sources(result.nodes))
            except (NoSourceError, OSError) as error:
                where = " and ".join(self._name(node) for node in result.nodes)
                raise RefusalError("refused", f"slice {slice_} of {job.id} is on {where}: {error}") from error
            offset = 0
            while offset < result.size_bytes:
                _, data = await asyncio.to_thread(self._node.blobs.read, result.blob, offset, limits.CHUNK_BYTES)
                if not data:
                    raise RefusalError("refused", f"slice {slice_} of {job.id} is cut short on this node's disk")
                offset += len(data)
                yield {"data": data}
            node = self._name(result.nodes[0])
            yield {"slice": slice_, "node": node, "inputs": job.inputs_of(slice_), "failed": result.failed}


def _job(view: JobView) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(view)
    del plain["sentence"], plain["detail"]
    return plain
