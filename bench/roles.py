"""Role processes without a daemon: whoever imports this plays the daemon at the other end of their channels."""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import (
    Assignment,
    Bound,
    CaughtUp,
    Completed,
    Endpoint,
    Exited,
    Failed,
    FromRole,
    Lease,
    Moving,
    PartWritten,
    Progressed,
    Replicas,
    RoleKey,
    Roster,
    Stop,
    ToRole,
    TrainingLaunch,
)

MODULES: Mapping[str, tuple[str, ...]] = {
    "server": ("-m", "dmi_node.roles.server"),
    "worker": ("-m", "dmi.run.worker"),
}
PORTS = (20_000, 29_999)
_FOR_EVER = Instant(1 << 60)


class RoleProcess:
    """One child and its channel."""

    def __init__(self, launch: TrainingLaunch, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.launch = launch
        self.key = launch.key
        directory = Path(launch.directory)
        (directory / "work").mkdir(parents=True, exist_ok=True)
        if launch.key.role == "worker":
            shutil.copy(Path(launch.bundle) / launch.script, directory / "work")
        self.log = directory / "log"
        self.channel, theirs = socket.socketpair()
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **environment, "DMI_ROLE_FD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                cwd=directory / "work",
                stdout=log,
                stderr=log,
            )
        self.tell(launch)

    def tell(self, message: ToRole) -> None:
        """Send one message to the child."""
        body = encode_struct(message)
        self.channel.sendall(len(body).to_bytes(4, "big") + body)

    def read(self) -> FromRole | Exited:
        """The next message, beats included, or how the process ended."""
        head = self._exactly(4)
        if head is None:
            self.channel.shutdown(socket.SHUT_RDWR)  # as a daemon does: all that it said is read
            code = self.process.wait(30)
            return Exited(max(code, 0), max(-code, 0))
        message: FromRole = decode_struct(self._exactly(int.from_bytes(head, "big")) or b"", FromRole)
        return message

    def next(self, deadline: float) -> FromRole | Exited:
        """The next message that is not a beat, or how the process ended; ``TimeoutError`` with its log."""
        while select.select([self.channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
            message = self.read()
            if not isinstance(message, Moving):
                return message
        raise TimeoutError(f"{self.key.role}-{self.key.index} says nothing; its log:\n{self.log.read_text()}")

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                piece = self.channel.recv(size - len(data))
            except ConnectionError:
                return None
            if not piece:
                return None
            data += piece
        return data

    def close(self) -> None:
        """End the child as a dying daemon would, and make sure."""
        self.channel.close()
        self.process.kill()
        self.process.wait(30)


class RoleProcesses:
    """The servers and workers of one job, each in its own process, on made-up nodes ``n0``, ``n1``, ..."""

    def __init__(
        self,
        directory: Path,
        script: Path,
        *,
        workers: int,
        servers: int,
        leaves: int | None,
        args: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        modules: Mapping[str, tuple[str, ...]] = MODULES,
        threads: int = 1,
        backups: int = 0,
    ) -> None:
        self._backups = backups
        self._caught_up: set[tuple[int, int]] = set()
        self.children: list[RoleProcess] = []
        for role, count in (("server", servers), ("worker", workers)):
            for index in range(count):
                launch = TrainingLaunch(
                    key=RoleKey(JobId("bench-000000"), 1, "server" if role == "server" else "worker", index),
                    node=NodeId(f"{index:016x}"),
                    node_name=f"n{index}",
                    script=script.name,
                    args=tuple(args),
                    bundle_hash=BlobHash("0" * 64),
                    bundle=str(script.parent),
                    directory=str(directory / f"{role}-{index}"),
                    leaves=leaves,
                    threads=threads,
                    workers=workers,
                    shards=servers,
                    host="127.0.0.1",
                    ports=PORTS,
                )
                self.children.append(RoleProcess(launch, modules[role], environment or {}))

    def of(self, role: str, index: int) -> RoleProcess:
        """One of the processes."""
        return next(child for child in self.children if (child.key.role, child.key.index) == (role, index))

    def introduce(self, within_s: float = 60.0) -> Roster:
        """Wait until all are bound, and tell all who takes part."""
        deadline = time.monotonic() + within_s
        endpoints = [self._bound(child, deadline) for child in self.children]
        servers = tuple(endpoint for endpoint in endpoints if endpoint.key.role == "server")
        workers = tuple(endpoint for endpoint in endpoints if endpoint.key.role == "worker")
        count = len(servers)
        self._copies = {s: tuple(sorted((s + 1 + nth) % count for nth in range(self._backups))) for s in range(count)}
        shards = tuple(Replicas(server, (), copies) for server, copies in self._copies.items())
        assignment = Assignment(tuple(range(len(workers))), (1.0,) * len(workers), 0, shards)
        roster = self._roster = Roster(1, 1, servers, workers, assignment)
        for child in self.children:
            child.tell(roster)
            child.tell(Lease(_FOR_EVER))
        return roster

    def _catch_up(self, message: CaughtUp) -> None:
        """A copy is filled. With the last one they count as backups from the next generation on, as with a coordinator."""
        self._caught_up.add((message.shard, message.server))
        if len(self._caught_up) == sum(map(len, self._copies.values())):
            shards = tuple(Replicas(server, copies) for server, copies in self._copies.items())
            assignment = replace(self._roster.assignment, shards=shards)
            self._roster = replace(self._roster, generation=self._roster.generation + 1, assignment=assignment)
            for child in self.children:
                child.tell(self._roster)

    def _bound(self, child: RoleProcess, deadline: float) -> Endpoint:
        message = child.next(deadline)
        assert isinstance(message, Bound), f"{message}\n{child.log.read_text()}"
        key, node, name = child.key, child.launch.node, child.launch.node_name
        return Endpoint(key, node, name, message.address, message.public_key)

    def finish(self, within_s: float = 60.0) -> dict[str, list[FromRole | Exited]]:
        """What each process says until it ends; they are stopped when all have done their work, as a daemon does.
        A failure ends the wait: the rest is killed by ``close``."""
        deadline = time.monotonic() + within_s
        said: dict[str, list[FromRole | Exited]] = {child.key.name: [] for child in self.children}
        living, stopped = list(self.children), False
        while living:
            ready = select.select([c.channel for c in living], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise TimeoutError("\n".join(f"{c.key.role}-{c.key.index}: {c.log.read_text()}" for c in living))
            for child in [each for each in living if each.channel in ready]:
                message = child.read()
                if isinstance(message, CaughtUp):
                    self._catch_up(message)
                if isinstance(message, Moving):
                    continue
                said[child.key.name].append(message)
                if isinstance(message, Failed):
                    return said
                if isinstance(message, Exited):
                    living.remove(child)
                    if message.code and not stopped:
                        raise RuntimeError(f"{child.key.name} ended with {message.code}:\n{child.log.read_text()}")
            if not stopped and all(Completed() in told for told in said.values()):
                for child in living:
                    child.tell(Stop())
                stopped = True
        return said

    def parts(self, said: Mapping[str, list[FromRole | Exited]]) -> list[PartWritten]:
        """The final parts, in the order of their shards."""
        found = [message for told in said.values() for message in told if isinstance(message, PartWritten)]
        return sorted((part for part in found if part.final), key=lambda part: part.shard)

    def __enter__(self) -> "RoleProcesses":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for child in self.children:
            child.close()


__all__ = ["Completed", "Exited", "Failed", "PartWritten", "Progressed", "RoleProcess", "RoleProcesses"]
