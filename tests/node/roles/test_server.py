"""The server's process and its patience: who may speak, who is waited for, and what is said in the end."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
import zmq

from bench.roles import Exited, RoleProcesses
from dmi_node.roles.replica import ShardReplica
from dmi_node.roles.server import Server
from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.messages.parameters import (
    Beat,
    Contribution,
    Declined,
    Fingerprint,
    Finish,
    Finished,
    Hello,
    Initial,
    Norms,
    ParameterMessage,
    Pull,
)
from dmi_protocol.messages.roles import (
    Assignment,
    Endpoint,
    FromRole,
    Lease,
    Replicas,
    RoleKey,
    Roster,
    TrainingLaunch,
    Unheard,
)
from dmi_wire.bulk import Context, DataConnection, DataListener, Delivery
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from tests.mesh.local import until

pytestmark = pytest.mark.processes

PATIENCE_S = 20.0
SLOW = """
import sys, time
import torch
from dmi.run.begin import init
run = init()
model = run.model(torch.nn.Linear(2, 1))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
for step in run.steps(torch.utils.data.TensorDataset(torch.ones(1_000_000, 2)), batch_size=8):
    for (inputs,) in step:
        model(inputs).sum().backward()
    optimizer.step()
"""


@pytest.fixture
def roles(tmp_path: Path) -> Iterator[RoleProcesses]:
    """Two workers and a server that go on for long."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    with RoleProcesses(tmp_path / "roles", script, workers=2, servers=1, leaves=None) as made:
        yield made


def steps_done(roles: RoleProcesses) -> int:
    """How far worker 0 has come; it may be writing a line."""
    path = Path(roles.of("worker", 0).launch.directory) / "ledger.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_for_step(roles: RoleProcesses, step: int) -> None:
    def is_there() -> bool:
        assert all(child.process.poll() is None for child in roles.children), "a role has ended"
        return steps_done(roles) >= step

    until(is_there, 2 * PATIENCE_S, "training goes on")


@pytest.mark.deep
def test_a_stranger_is_refused_and_training_goes_on(roles: RoleProcesses) -> None:
    roster = roles.introduce()
    wait_for_step(roles, 3)
    context: Context = zmq.Context()
    keys = KeyPair.make()
    line = DataConnection(
        context, keys, b"worker-0", roster.servers[0].address, PublicKey(roster.servers[0].public_key)
    )
    monitor = line.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)  # it may ask again
    line.send(Finish(1, 0, 3))
    assert monitor.poll(int(PATIENCE_S * 1000)), "the handshake did not fail"
    assert line.receive() is None
    line.socket.disable_monitor()
    monitor.close()
    line.close()
    context.term()
    wait_for_step(roles, steps_done(roles) + 3)


def test_role_processes_end_with_their_daemon(roles: RoleProcesses) -> None:
    roles.introduce()
    wait_for_step(roles, 1)
    for child in roles.children:
        child.channel.close()
    for child in roles.children:
        assert child.process.wait(PATIENCE_S) == 113


def test_a_killed_role_is_seen_on_its_channel(roles: RoleProcesses) -> None:
    roles.introduce()
    wait_for_step(roles, 1)
    worker = roles.of("worker", 1)
    os.kill(worker.process.pid, signal.SIGKILL)
    assert worker.next(time.monotonic() + PATIENCE_S) == Exited(0, signal.SIGKILL)


class GaveUpError(Exception):
    """Raised where a real child would end."""


class Listening(Child):
    """A child that does not end its process, and stops where a pair is reported."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0)
        self.lease = Lease(Instant(1 << 60))
        self.reported: Unheard | None = None

    def newest(self) -> None:
        return None

    def tell(self, message: FromRole) -> None:
        assert isinstance(message, Unheard)
        self.reported = message
        raise GaveUpError

    def fail(self, kind: str, text: str, *, starting: bool) -> NoReturn:
        raise AssertionError(f"{kind}: {text}")


class Alone:
    """A server in this process, with two workers in its roster: we speak for worker 0, and worker 1 is silent."""

    def __init__(self, directory: Path) -> None:
        self.context: Context = zmq.Context()
        keys, mine, job, node = [KeyPair.make(), KeyPair.make()], KeyPair.make(), JobId("job-000000"), NodeId("0" * 16)
        workers = tuple(
            Endpoint(RoleKey(job, 1, "worker", n), node, f"n{n}", "", PublicKey(keys[n].public)) for n in range(2)
        )
        self.listener = DataListener(self.context, mine, "127.0.0.1", (30_000, 30_999))
        self.listener.admit({endpoint.public_key: b"worker-%d" % endpoint.key.index for endpoint in workers})
        endpoint = Endpoint(RoleKey(job, 1, "server", 0), node, "n0", self.listener.address, PublicKey(mine.public))
        self.roster = Roster(1, 1, (endpoint,), workers, Assignment((0, 1), (1.0, 1.0), 0, (Replicas(0),)))
        launch = TrainingLaunch(
            key=endpoint.key,
            node=node,
            node_name="n0",
            script="train.py",
            args=(),
            bundle_hash=BlobHash("0" * 64),
            bundle="",
            directory=str(directory),
            leaves=None,
            threads=1,
            workers=2,
            shards=1,
            host="127.0.0.1",
            ports=(1, 2),
        )
        self.line = DataConnection(self.context, keys[0], b"worker-0", self.listener.address, PublicKey(mine.public))
        self.child = Listening()
        self.server = Server(self.child, launch, (), self.listener, self.context, mine)

    def run(self) -> Unheard:
        """Let the server live until it has lost patience with worker 1."""
        with pytest.raises(GaveUpError):
            self.server.run(self.roster)
        assert self.child.reported is not None
        return self.child.reported


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Alone]:
    monkeypatch.setattr(limits, "PAIR_SILENT_MS", 1_500)
    made = Alone(tmp_path)
    yield made
    made.line.close()
    made.listener.close()
    made.context.term()


def test_a_worker_that_is_silent_is_named(alone: Alone) -> None:
    alone.line.send(Beat(1))
    reported = alone.run()
    assert (reported.generation, reported.role) == (1, "worker")
    assert reported.silent_ms > 1_500
    assert alone.line.receive(1_000) == (Beat(1), ()), "beats are answered"


@pytest.mark.parametrize(
    "message",
    [
        Contribution(1, 0, 0, 0, 0, 1, (), b"detail"),
        Pull(1, 0, 0, (0,)),
        Initial(1, 0, 0, ()),
        Hello(1, 0, 1, Fingerprint(()), b""),
        Hello(1, 0, 0, Fingerprint(()), b"no definition"),
        Norms(1, 0, 0, ()),
        Finished(1, 0),
    ],
)
def test_what_makes_no_sense_is_declined_and_the_server_goes_on(alone: Alone, message: ParameterMessage) -> None:
    alone.line.send(message)
    alone.line.send(Beat(1))
    alone.run()
    answers = [answer[0] for answer in (alone.line.receive(1_000), alone.line.receive(1_000)) if answer is not None]
    assert Beat(1) in answers
    assert [answer.kind for answer in answers if isinstance(answer, Declined)] == ["peer"]


def test_a_copy_that_is_slow_and_beats_is_not_silent(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """It confirms late, because its disk or its link is slow: nobody need replace it. One that is not heard is reported."""
    now = [10_000]
    monkeypatch.setattr("dmi_node.roles.server._now", lambda: Instant(now[0]))
    server = alone.server
    server.roster = alone.roster
    server._heard.clear()
    server._copies = {0: cast(ShardReplica, SimpleNamespace(is_primary=True, silent_copies=lambda: (1,)))}
    server._others = {1: Instant(now[0])}
    for _ in range(5):
        now[0] += 1_000
        assert server._is_only_a_beat(Delivery(b"server-1", Beat(1), ()))
        server._lose_patience()
    now[0] += limits.PAIR_SILENT_MS + 1
    with pytest.raises(GaveUpError):
        server._lose_patience()
    assert alone.child.reported is not None
    assert (alone.child.reported.role, alone.child.reported.index) == ("server", 1)


def test_who_is_at_something_long_is_there_and_hears_the_rest_in_its_turn(alone: Alone) -> None:
    """A copy of a large shard, or its room, takes longer than anybody waits for a word."""
    server, heard = alone.server, list[ParameterMessage]()
    server.roster, server._heard = alone.roster, {0: Instant(0)}

    def takes_long(worker: int, message: ParameterMessage, frames: object) -> None:
        heard.append(message)
        if len(heard) > 1:
            return
        alone.line.send(Pull(1, 0, 2, (0,)))
        alone.line.send(Beat(1))
        until = time.monotonic() + PATIENCE_S
        while (answer := alone.line.receive(20)) is None:
            assert time.monotonic() < until, "nobody is told that we are there"
            server.meanwhile()
        assert answer[0] == Beat(1)

    server._copies = {0: cast(ShardReplica, SimpleNamespace(is_primary=True, hear=takes_long))}
    server._take(Delivery(b"worker-0", Pull(1, 0, 1, (0,)), ()))
    assert server._heard[0] > Instant(0)
    assert heard == [Pull(1, 0, 1, (0,))]
    server._hear_all()
    assert heard == [Pull(1, 0, 1, (0,)), Pull(1, 0, 2, (0,))]
