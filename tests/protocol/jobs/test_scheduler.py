"""What the coordinator proposes for the jobs."""

from dmi_protocol import limits
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import CompleteRole, Finish, JobSpec, KeepPart, Part, Place, SeatRole, Submit
from dmi_protocol.cluster.state import FAILED, SUCCEEDED, ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.reasons import NodeLost, RoleUnready, Succeeded

A, B, C = NODES = tuple(NodeId(letter * 16) for letter in "abc")
ALL = frozenset(NODES)
NOW = Instant(0)


class Table:
    """A state, and every command applied to it in order."""

    def __init__(self, *specs: JobSpec, witness: NodeId | None = None) -> None:
        self.state = ClusterState("mesh")
        for node in NODES:
            self.state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), node == witness)
        requests = [Submit(RequestId(f"s{n}"), spec, BlobHash("b" * 64), (A,)) for n, spec in enumerate(specs)]
        self.jobs = [JobId(apply(self.state, n, submit).value) for n, submit in enumerate(requests)]
        self.scheduler = Scheduler()

    def propose(self, now: Instant = NOW, alive: frozenset[NodeId] = ALL) -> list[Place | Finish]:
        """What is proposed, and applied."""
        found = self.scheduler.propose(now, self.state, alive)
        for command in found:
            apply(self.state, self.state.applied + 1, command)
        return [command for command in found if isinstance(command, Place | Finish)]

    def bind(self, job: JobId) -> None:
        for role, _ in self.state.jobs[job].roles():
            request = RequestId(f"{role.generation}/{role.role}-{role.index}")
            apply(self.state, self.state.applied + 1, SeatRole(request, role, "h:2", PublicKey("k" * 40), 7))


def spec(workers: int | None = None) -> JobSpec:
    return JobSpec("job", "t.py", workers=workers)


def test_jobs_are_placed_in_the_order_of_their_submission_and_the_load_is_spread() -> None:
    table = Table(spec(1), spec(1))
    first, second = table.propose()
    assert isinstance(first, Place)
    assert isinstance(second, Place)
    assert [first.job, second.job] == table.jobs
    assert (first.workers, second.workers) == ((A,), (B,))
    assert table.propose() == []


def test_a_job_waits_for_nodes() -> None:
    table = Table(spec(3))
    assert table.propose(alive=frozenset({A, B})) == []
    assert len(table.propose()) == 1


def test_a_witness_plays_no_role() -> None:
    (place,) = Table(spec(), witness=B).propose()
    assert isinstance(place, Place)
    assert place.workers == place.servers == (A, C)


def test_a_node_lost_while_the_job_starts_costs_a_generation() -> None:
    table = Table(spec(2))
    table.propose()
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert (again.generation, set(again.workers)) == (2, {B, C})


def test_a_node_lost_while_the_job_starts_may_come_back_when_there_is_no_other() -> None:
    table = Table(spec(3))
    table.propose()
    assert table.propose(alive=frozenset({B, C})) == []
    assert table.propose() == []
    assert table.state.jobs[table.jobs[0]].generation == 1


def test_a_role_that_does_not_get_ready_fails_the_job() -> None:
    table = Table(spec(1))
    table.propose()
    assert table.propose(Instant(1)) == []
    due = Instant(1 + limits.ROLE_START_MS)
    assert table.scheduler.deadline(table.state) == due
    assert table.propose(Instant(due - 1)) == []
    (end,) = table.propose(due)
    assert isinstance(end, Finish)
    assert (end.state, end.reason) == (FAILED, RoleUnready("server-0", "a", limits.ROLE_START_MS))
    assert table.scheduler.deadline(table.state) is None


def test_a_node_lost_while_the_job_runs_fails_it() -> None:
    table = Table(spec(2))
    table.propose()
    table.bind(table.jobs[0])
    assert table.propose() == []
    (end,) = table.propose(alive=frozenset({A, C}))
    assert isinstance(end, Finish)
    assert (end.state, end.reason) == (FAILED, NodeLost("server-1", "b"))


def test_a_node_lost_after_its_roles_are_done_is_no_loss_and_the_end_waits_for_the_final_parts() -> None:
    table = Table(spec(1))
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    for role, _ in table.state.jobs[job].roles():
        apply(table.state, 50, CompleteRole(RequestId(f"done-{role.role}"), role))
    assert table.propose(alive=frozenset({B, C})) == []
    part = Part(0, BlobHash("1" * 64), 1, A)
    apply(table.state, 51, KeepPart(RequestId("part"), job, 1, 12, part, final=True))
    (end,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(end, Finish)
    assert (end.state, end.reason, end.step) == (SUCCEEDED, Succeeded(12), 12)
