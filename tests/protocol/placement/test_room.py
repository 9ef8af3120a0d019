"""Shares: who is placed where what is asked for is left, who waits, and what nobody promises twice."""

from collections import Counter

import pytest
from msgspec.structs import replace

from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import BindRole, Cancel, Command, Drain, Place, Resize, Spec, Submit, TrainingSpec
from dmi_protocol.cluster.state import ClusterState, MemberRecord, Outcome
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.job import QUEUED, RUNNING, STARTING
from dmi_protocol.placement.room import Room
from dmi_protocol.reasons import Malformed, NoRoom, Serving, Stale, UnknownMember
from dmi_protocol.sentences import sentence
from dmi_protocol.view import why
from tests.protocol.models import adding, batch, cutting, deployment

NODES = A, B, C = tuple(NodeId(letter * 16) for letter in "abc")
GB = 10**9


class Table:
    """Three nodes with two processors and 8 GB each, and a coordinator that has its way at once."""

    def __init__(self) -> None:
        self.state = ClusterState("mesh")
        for node in NODES:
            self.state.members[node] = MemberRecord(
                node, node[0], "h:1", PublicKey(node), witness=False, capacity=Capacity(2, 8 * GB)
            )
        self._index = 0
        self.do(adding("m", A, B))
        self.do(cutting(2, A, B))

    def do(self, command: Command) -> Outcome:
        """It is in the log."""
        self._index += 1
        return apply(self.state, self._index, command)

    def submit(self, spec: Spec) -> AnyJob:
        """It is submitted, and all that follows is done."""
        request = RequestId(f"submit-{self._index}")
        blob, holders = (BlobHash(""), ()) if spec.__struct_config__.tag == "deployment" else (BlobHash("b" * 64), (A,))
        outcome = self.do(Submit(request, spec, blob, holders))
        assert outcome.refusal is None, outcome.refusal
        self.settle()
        return self.state.jobs[JobId(outcome.value)]

    def propose(self) -> list[Command]:
        """What the coordinator wants."""
        return Scheduler().propose(Instant(0), self.state, frozenset(NODES))

    def settle(self) -> None:
        """Until nothing is due."""
        for _ in range(20):
            for job in list(self.state.jobs.values()):
                for role, _ in job.roles() if job.goes_on else ():
                    request = RequestId(f"bind-{role}")
                    self.do(BindRole(request, role, "h:2", PublicKey("k" * 40), 7))
            due = self.propose()
            if not due:
                return
            for command in due:
                self.do(command)
        raise AssertionError("it never settles")

    def why(self, job: AnyJob) -> str:
        """For people."""
        return sentence(why(job, self.state, frozenset(NODES)))


def training(cpus: int | None = None, memory: int | None = None, workers: int | None = None) -> TrainingSpec:
    return TrainingSpec("job", "t.py", workers=workers, backups=0 if workers == 1 else None, cpus=cpus, memory=memory)


def nodes_of(job: AnyJob, role: str) -> Counter[str]:
    return Counter(placement.node[0] for placement in job.placements if placement.role.role == role)


def test_a_share_of_a_training_is_that_of_its_node_whatever_runs_there() -> None:
    table = Table()
    first = table.submit(training(cpus=1))
    assert nodes_of(first, "worker") == nodes_of(first, "server") == Counter("abc")
    assert [Room(table.state).spare(node).cpus for node in NODES] == [1, 1, 1]
    second = table.submit(training(cpus=1))
    assert second.is_placed
    third = table.submit(training(cpus=1))
    assert (third.is_placed, third.state) == (False, QUEUED)
    assert table.submit(training()).is_placed, "who asks for nothing waits for nothing"


def test_who_waits_is_placed_once_there_is_room_in_the_order_of_the_queue() -> None:
    table = Table()
    first = table.submit(training(cpus=2))
    second, third = table.submit(training(cpus=2, workers=3)), table.submit(training(cpus=2))
    assert table.why(second) == (
        "waiting for 3 nodes with 2 processors left; a has 0 processors, b has 0 processors, c has 0 processors"
    )
    table.do(Cancel(RequestId("end"), first.id))
    table.settle()
    assert (second.is_placed, third.is_placed) == (True, False)


def test_memory_counts_as_processors_do() -> None:
    table = Table()
    table.submit(training(memory=5 * GB))
    waiting = table.submit(training(cpus=1, memory=4 * GB, workers=1))
    assert table.why(waiting) == (
        "waiting for a node with 1 processor and 4.0 GB left; a has 2 processors and 3.0 GB, "
        "b has 2 processors and 3.0 GB, c has 2 processors and 3.0 GB"
    )
    assert table.submit(training(cpus=1, memory=3 * GB)).is_placed


def test_a_training_takes_the_nodes_that_have_room_and_others_as_they_get_some() -> None:
    table = Table()
    on_one = table.submit(training(cpus=2, workers=1))
    used = set(nodes_of(on_one, "worker"))
    rest = table.submit(training(cpus=1))
    assert set(nodes_of(rest, "worker")) == set("abc") - used
    assert set(nodes_of(rest, "server")) == set("abc") - used


def test_each_replica_of_a_deployment_has_a_share_and_gateways_have_none() -> None:
    table = Table()
    served = table.submit(replace(deployment(replicas=5), cpus=1))
    assert sorted(nodes_of(served, "replica").values()) == [1, 2, 2]
    assert nodes_of(served, "gateway") == Counter("abc")
    table.submit(training(cpus=1, workers=1))
    assert [Room(table.state).spare(node).cpus for node in NODES] == [0, 0, 0]


def test_a_deployment_serves_with_the_replicas_that_there_is_room_for() -> None:
    table = Table()
    table.submit(training(cpus=1))
    served = table.submit(replace(deployment(replicas=4), cpus=1))
    assert (nodes_of(served, "replica"), served.state) == (Counter("abc"), RUNNING)
    reason = why(served, table.state, frozenset(NODES))
    assert isinstance(reason, Serving)
    assert reason.lacking == 1
    assert sentence(reason).endswith("; for 1 more of its replicas no node has room")
    assert table.propose() == []


def test_a_stage_without_room_is_waited_for() -> None:
    table = Table()
    table.submit(training(cpus=2, workers=1))
    table.submit(training(cpus=2, workers=1))
    table.submit(training(cpus=1, workers=1))
    spec = deployment(replicas=1)
    stages = table.state.models["m"][1].cuts[2]
    cut = replace(spec, model=replace(spec.model, content=replace(spec.model.content, stages=stages)), cpus=1)
    served = table.submit(cut)
    assert (nodes_of(served, "replica").total(), served.state) == (1, STARTING)
    assert isinstance(why(served, table.state, frozenset(NODES)), NoRoom)


def test_replicas_are_evened_out_only_where_there_is_room() -> None:
    table = Table()
    blocked = table.submit(training(cpus=2, workers=1))
    served = table.submit(replace(deployment(replicas=4), cpus=1))
    (taken,) = nodes_of(blocked, "worker")
    assert sorted(nodes_of(served, "replica").values()) == [2, 2]
    assert table.propose() == [], "nobody moves to where no room is"
    table.do(Cancel(RequestId("end"), blocked.id))
    table.settle()
    assert nodes_of(served, "replica")[taken] == 1


def test_each_replica_of_a_batch_inference_has_a_share() -> None:
    table = Table()
    job = table.submit(replace(batch(inputs=40, slice_inputs=1, per_node=3), cpus=1))
    assert nodes_of(job, "replica") == Counter("aabbcc"), "a third one has no room"
    assert not table.submit(replace(batch(), cpus=1)).is_placed


def test_what_was_decided_before_another_job_was_placed_is_decided_again() -> None:
    table = Table()
    job = table.state.jobs
    for nth in range(2):
        table.do(Submit(RequestId(f"s{nth}"), training(cpus=2), BlobHash("b" * 64), (A,)))
    first, second = job.values()
    (place,) = (command for command in table.propose() if isinstance(command, Place))
    late = replace(place, request=RequestId("late"), job=second.id)
    late = replace(late, placements=tuple(replace(p, role=replace(p.role, job=second.id)) for p in place.placements))
    assert table.do(place).refusal is None
    assert table.do(late).refusal == Stale()
    assert (first.is_placed, second.is_placed, second.attempt) == (True, False, "-1")
    table.do(Cancel(RequestId("end"), first.id))
    (again,) = (command for command in table.propose() if isinstance(command, Place))
    assert again.request.endswith("-1")
    assert table.do(again).refusal is None


def test_a_node_that_leaves_gives_its_share_back_when_it_is_left() -> None:
    table = Table()
    served = table.submit(replace(deployment(replicas=3), cpus=2))
    table.do(Drain(RequestId("drain"), A, on=True))
    table.settle()
    assert nodes_of(served, "replica")["b"] == 1
    assert nodes_of(served, "replica").total() == 3, "nobody else has room, so it serves on"


def test_a_member_says_what_it_has() -> None:
    table = Table()
    assert table.do(Resize(RequestId("r1"), A, Capacity(4, GB))).refusal is None
    assert table.state.members[A].capacity == Capacity(4, GB)
    assert isinstance(table.do(Resize(RequestId("r2"), NodeId("d" * 16), Capacity(1, 1))).refusal, UnknownMember)
    assert isinstance(table.do(Resize(RequestId("r3"), A, Capacity(-1, 1))).refusal, Malformed)


def test_a_node_set_to_less_than_it_has_promised_keeps_it_and_promises_nothing() -> None:
    table = Table()
    job = table.submit(training(cpus=1))
    table.do(Resize(RequestId("less"), A, Capacity(0, 0)))
    table.settle()
    assert nodes_of(job, "worker") == Counter("abc")
    assert Room(table.state).spare(A) == Capacity(-1, 0)
    assert set(nodes_of(table.submit(training(cpus=1)), "worker")) == {"b", "c"}


@pytest.mark.parametrize("share", [{"cpus": 0}, {"memory": 0}, {"cpus": -1}])
def test_a_share_is_something(share: dict[str, int]) -> None:
    table = Table()
    spec = replace(training(), **share)
    assert isinstance(table.do(Submit(RequestId("s"), spec, BlobHash("b" * 64), (A,))).refusal, Malformed)
