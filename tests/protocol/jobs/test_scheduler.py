"""What the coordinator proposes for the jobs."""

from dmi_protocol import limits
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import (
    Command,
    CompleteRole,
    Finish,
    JobSpec,
    KeepPart,
    LoseRole,
    Part,
    Place,
    SeatRole,
    Submit,
)
from dmi_protocol.cluster.state import FAILED, RECOVERING, SUCCEEDED, ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.reasons import NodeLost, RoleUnready, Succeeded
from tests.protocol.casts import servers, workers

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
        """What is proposed, and applied, until nothing new is."""
        done: list[Command] = []
        while found := self.scheduler.propose(now, self.state, alive):
            assert len(done) < 10
            for command in found:
                outcome = apply(self.state, self.state.applied + 1, command)
                assert outcome.refusal is None or isinstance(command, LoseRole), "the others go with the first"
            done += found
        return [command for command in done if isinstance(command, Place | Finish)]

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
    assert (workers(first.posts), workers(second.posts)) == ((A,), (B,))
    assert table.propose() == []


def test_a_job_waits_for_nodes() -> None:
    table = Table(spec(3))
    assert table.propose(alive=frozenset({A, B})) == []
    assert len(table.propose()) == 1


def test_a_witness_plays_no_role() -> None:
    (place,) = Table(spec(), witness=B).propose()
    assert isinstance(place, Place)
    assert workers(place.posts) == servers(place.posts) == (A, C)


def test_a_node_lost_while_the_job_starts_costs_a_generation() -> None:
    table = Table(spec(2))
    table.propose()
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert (again.generation, set(workers(again.posts))) == (2, {B, C})


def test_a_node_lost_while_the_job_starts_is_waited_for_when_there_is_no_other() -> None:
    table = Table(spec(3))
    table.propose()
    assert table.propose(alive=frozenset({B, C})) == []
    assert table.state.jobs[table.jobs[0]].state == "queued"
    (again,) = table.propose()
    assert isinstance(again, Place)
    assert (again.generation, workers(again.posts)) == (2, NODES)


def test_a_role_that_does_not_get_ready_fails_the_job() -> None:
    table = Table(spec(1))
    table.propose()
    assert table.propose(Instant(1)) == []
    due = Instant(limits.ROLE_START_MS)
    assert table.scheduler.deadline(table.state) == due
    assert table.propose(Instant(due - 1)) == []
    (end,) = table.propose(due)
    assert isinstance(end, Finish)
    assert (end.state, end.reason) == (FAILED, RoleUnready("server-0", "a", limits.ROLE_START_MS))
    assert table.scheduler.deadline(table.state) is None


def test_a_job_that_ran_makes_do_with_the_nodes_that_are_left() -> None:
    table = Table(spec(3))
    table.propose()
    table.bind(table.jobs[0])
    assert table.propose() == []
    (again,) = table.propose(alive=frozenset({A, C}))
    assert isinstance(again, Place)
    assert (again.generation, workers(again.posts), servers(again.posts), again.keepers) == (2, (A, C), (A, C), (C, A))
    assert again.restore is None
    job = table.state.jobs[table.jobs[0]]
    assert (job.state, job.reason) == (RECOVERING, NodeLost("server-1", "b"))


def keep(table: Table, job: JobId, step: int, *, final: bool = False) -> None:
    """A whole checkpoint of the placement in force."""
    placed = table.state.jobs[job]
    for shard, nodes in enumerate(zip(placed.primaries(), placed.keepers, strict=True)):
        for node in nodes:
            part = Part(shard, BlobHash("1" * 64), 1, node)
            request = RequestId(f"{placed.generation}/{step}/{shard}/{node}")
            apply(table.state, 50, KeepPart(request, job, placed.generation, step, part, final))


def test_nobody_goes_on_before_somebody_has_each_part_of_the_checkpoint() -> None:
    table = Table(spec(2))
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    keep(table, job, 4)
    assert table.propose(alive=frozenset({C})) == []
    found = table.state.jobs[job]
    assert (found.state, found.is_placed, found.reason) == (RECOVERING, False, NodeLost("server-0", "a"))
    assert found.parts_away({C}) == (A, B)
    (again,) = table.propose(alive=frozenset({A, C}))
    assert isinstance(again, Place)
    assert (again.restore, workers(again.posts)) == (4, (A, C))


def test_a_keeper_that_is_away_is_replaced() -> None:
    table = Table(JobSpec("job", "t.py", workers=1, backups=0))
    table.propose()
    job = table.state.jobs[table.jobs[0]]
    assert (servers(job.posts)[:1], job.keepers) == ((A,), (B,))
    for alive, keepers in (({A, C}, (C,)), (ALL, (C,)), ({A}, ()), ({A, B}, (B,))):
        assert table.propose(alive=frozenset(alive)) == []
        assert job.keepers == keepers, "one that is there stays; nobody is better than a dead one"
    assert job.generation == 1


def test_a_server_whose_last_words_a_worker_may_miss_is_a_loss() -> None:
    """Simulation, seed 242: the worker waited for ever."""
    table = Table(spec(2))
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    server, _ = table.state.jobs[job].roles()[0]
    apply(table.state, 50, CompleteRole(RequestId("done"), server))
    keep(table, job, 12, final=True)
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert again.restore == 12


def test_a_node_lost_after_its_roles_are_done_is_a_loss_only_before_the_final_parts_are_safe() -> None:
    for is_safe in (True, False):
        table = Table(spec(1))
        table.propose()
        (job,) = table.jobs
        table.bind(job)
        for role, _ in table.state.jobs[job].roles():
            apply(table.state, 50, CompleteRole(RequestId(f"done-{role.role}"), role))
        assert table.propose() == [], "the end waits for the final parts"
        if is_safe:
            keep(table, job, 12, final=True)
        (command,) = table.propose(alive=frozenset({B, C}))
        if is_safe:
            assert isinstance(command, Finish)
            assert (command.state, command.reason, command.step) == (SUCCEEDED, Succeeded(12), 12)
        else:
            assert isinstance(command, Place)
            assert workers(command.posts) == (B,)


def test_a_node_whose_processes_cannot_talk_is_done_without_in_the_next_life() -> None:
    """Two hosts with a cut between them would be placed again and again, and never make a step."""
    table = Table(spec())
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    table.state.jobs[job].misses[B] = limits.MISSES
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert workers(again.posts) == (C,)
