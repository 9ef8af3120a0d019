"""What commands do to a job whose processes go on after a loss."""

from collections.abc import Iterable

from dmi_protocol import limits
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import (
    BindRole,
    Command,
    CompleteRole,
    LoseRole,
    MarkBusy,
    Placement,
    ReadyRole,
    Reassign,
    Recopy,
    Recruit,
    ReportPair,
    Submit,
    SyncReplica,
    TrainingSpec,
)
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.job import QUEUED, RECOVERING, RUNNING
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.roles import Assignment, Replicas, Role, RoleKey
from dmi_protocol.reasons import Loss, NodeLost, PairSilent, Reason, Stale
from dmi_protocol.sentences import sentence
from tests.protocol.assignments import filled, placing, training

A, B, C = NODES = tuple(NodeId(letter * 16) for letter in "abc")
LOST = NodeLost("some-role", "n")


class Mesh:
    """A job that runs on ``nodes``, a server and a worker on each; every command has a request of its own."""

    def __init__(self, *nodes: NodeId, backups: int = 1, bound: bool = True) -> None:
        self.state = ClusterState("mesh")
        for node in NODES:
            self.state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
        spec = TrainingSpec("job", "t.py", backups=backups)
        submit = Submit(self.request(), spec, BlobHash("b" * 64), (A,))
        self.id = JobId(apply(self.state, 1, submit).value)
        self.do(placing(self.id, 1, nodes, nodes, backups=backups))
        if bound:
            self.endpoint(*(role for role, _ in self.job.roles()))

    @property
    def job(self) -> TrainingJob:
        return training(self.state, self.id)

    @property
    def assignment(self) -> Assignment:
        assert self.job.assignment is not None
        return self.job.assignment

    def request(self) -> RequestId:
        return RequestId(f"r{len(self.state.requests)}")

    def do(self, command: Command) -> Reason | None:
        return apply(self.state, self.state.applied + 1, command).refusal

    def key(self, role: Role, index: int, generation: int = 1) -> RoleKey:
        return RoleKey(self.id, generation, role, index)

    def endpoint(self, *roles: RoleKey) -> None:
        for role in roles:
            assert self.do(BindRole(self.request(), role, "h:2", PublicKey("k" * 40), 7)) is None

    def lose(self, role: Role, index: int, generation: int = 1, reason: Loss = LOST) -> None:
        assert self.do(LoseRole(self.request(), self.key(role, index, generation), reason)) is None

    def sync(self, generation: int, shard: int, server: int) -> Reason | None:
        return self.do(SyncReplica(self.request(), self.id, generation, shard, server))

    def reassign(
        self, assignment: Assignment, generation: int, dismissed: tuple[RoleKey, ...] = (), *, is_full: bool = False
    ) -> Reason | None:
        return self.do(Reassign(self.request(), self.id, generation, assignment, is_full, dismissed))

    def recruit(self, *placements: tuple[Role, int, NodeId]) -> Reason | None:
        generation = self.job.generation
        wanted = tuple(Placement(self.key(role, index, generation + 1), node) for role, index, node in placements)
        return self.do(Recruit(self.request(), self.id, generation, wanted))

    def pair(self, role: RoleKey, peer: RoleKey, generation: int) -> Reason | None:
        return self.do(ReportPair(self.request(), role, generation, peer.role, peer.index, 2_000))

    def complete(self, *workers: int) -> None:
        for index in workers:
            assert self.do(CompleteRole(self.request(), self.key("worker", index))) is None

    def fill(self) -> None:
        """Everybody is in sync, in generation 2."""
        for shard, replicas in enumerate(self.assignment.shards):
            for server in replicas.filling:
                assert self.sync(1, shard, server) is None
        assert self.reassign(filled(self.assignment), 2, is_full=True) is None

    def proposed(self) -> list[Command]:
        """What is due, but for copies of its files: these tests have them on one node."""
        found = Scheduler().propose(Instant(0), self.state, frozenset(NODES))
        return [command for command in found if not isinstance(command, Recopy)]


def led(assignment: Assignment, shards: Iterable[Replicas]) -> Assignment:
    return Assignment(assignment.workers, assignment.speeds, assignment.lead, tuple(shards))


def test_only_who_is_in_sync_is_promoted() -> None:
    mesh = Mesh(A, B)
    other = led(mesh.assignment, (Replicas(1, (), (0,)), Replicas(1, (), (0,))))
    assert mesh.assignment.shards == (Replicas(0, (), (1,)), Replicas(1, (), (0,)))
    assert mesh.reassign(other, 2) == Stale()
    mesh.fill()
    assert (mesh.job.generation, mesh.job.synced, mesh.assignment.shards[0]) == (2, (), Replicas(0, (1,)))
    assert mesh.reassign(other, 3) is None
    assert (mesh.job.generation, mesh.job.start_generation, mesh.assignment) == (3, 1, other)


def test_nobody_is_called_in_sync_who_was_not_told_to_be() -> None:
    mesh = Mesh(A, B)
    assert mesh.reassign(filled(mesh.assignment), 2) == Stale()
    assert mesh.sync(1, 0, 1) is None
    assert mesh.reassign(filled(mesh.assignment), 2) == Stale(), "one of two"
    assert mesh.reassign(led(mesh.assignment, (Replicas(0, (1,)), Replicas(1, (), (0,)))), 2) is None


def test_what_was_filled_in_an_older_generation_does_not_count() -> None:
    mesh = Mesh(A, B)
    assert mesh.sync(1, 0, 1) is None
    assert mesh.reassign(mesh.assignment, 2) is None
    assert mesh.job.synced == ()
    assert mesh.sync(1, 0, 1) == Stale()
    assert mesh.reassign(filled(mesh.assignment), 3) == Stale()
    assert mesh.sync(2, 0, 1) is None
    assert list(mesh.job.synced) == [(0, 1)]


def test_who_was_not_being_filled_has_not_caught_up() -> None:
    mesh = Mesh(A, B)
    for shard, server in ((0, 0), (0, 7), (1, 1), (2, 0), (-1, 0)):
        assert mesh.sync(1, shard, server) == Stale()
    assert mesh.job.synced == ()


def test_an_assignment_is_of_processes_that_are_there() -> None:
    mesh = Mesh(A, B)
    shards = mesh.assignment.shards
    assert mesh.reassign(Assignment((0, 5), (1.0, 0.0), 0, shards), 2) == Stale(), "nobody knows it"
    assert mesh.recruit(("worker", 2, C)) is None
    joiner = Assignment((0, 1, 2), (1.0, 1.0, 0.0), 0, shards)
    assert mesh.reassign(joiner, 2) == Stale(), "it is not bound"
    mesh.endpoint(mesh.key("worker", 2, 2))
    assert mesh.reassign(led(joiner, shards[:1]), 2) == Stale(), "a shard is missing"
    assert mesh.reassign(joiner, 3) == Stale(), "a generation was left out"
    assert mesh.reassign(joiner, 2, (mesh.key("worker", 1),)) == Stale(), "it is in the assignment"
    assert mesh.reassign(joiner, 2) is None
    assert mesh.reassign(joiner, 2) == Stale()


def test_who_is_dismissed_is_wanted_no_more() -> None:
    mesh = Mesh(A, B)
    gone = mesh.key("worker", 1)
    assert mesh.reassign(Assignment((0,), (1.0,), 0, mesh.assignment.shards), 2, (gone,)) is None
    assert gone not in dict(mesh.job.roles())
    assert gone not in {record.endpoint.key for record in mesh.job.endpoints}
    assert mesh.do(LoseRole(mesh.request(), gone, LOST)) == Stale()


def test_a_reason_stays_until_nothing_is_amiss() -> None:
    mesh = Mesh(A, B)
    mesh.fill()
    mesh.lose("worker", 1)
    assert (mesh.job.state, mesh.job.reason, mesh.job.runs) == (RECOVERING, LOST, True)
    alone = Assignment((0,), (1.0,), 0, mesh.assignment.shards)
    assert mesh.reassign(alone, 3) is None
    assert (mesh.job.state, mesh.job.reason) == (RUNNING, LOST)
    assert mesh.reassign(alone, 4, is_full=True) is None
    assert (mesh.job.state, mesh.job.reason) == (RUNNING, None)


def test_the_others_go_on_after_the_loss_of_a_primary_that_has_a_backup() -> None:
    mesh = Mesh(A, B)
    mesh.fill()
    mesh.lose("server", 0)
    assert (mesh.job.state, mesh.job.is_placed, mesh.job.runs, mesh.job.start_generation) == (RECOVERING, True, True, 1)
    assert mesh.job.primaries() == ("", B)
    (reassign,) = mesh.proposed()
    assert isinstance(reassign, Reassign)
    assert (reassign.generation, reassign.is_full) == (3, False)
    assert reassign.assignment.shards == (Replicas(1), Replicas(1))
    assert mesh.do(reassign) is None
    assert (mesh.job.state, mesh.job.primaries()) == (RUNNING, (B, B))


def test_the_loss_of_a_primary_without_a_backup_ends_all_processes() -> None:
    for backups in (0, 1):  # the one that there should be is not filled yet
        mesh = Mesh(A, B, backups=backups)
        mesh.lose("server", 0)
        job = mesh.job
        assert (job.state, job.reason, job.is_placed, job.assignment, job.runs) == (
            RECOVERING,
            LOST,
            False,
            None,
            False,
        )
        assert (job.endpoints, job.synced, job.ready, job.pairs) == ((), (), (), ())


def test_the_loss_of_both_copies_ends_all_processes() -> None:
    mesh = Mesh(A, B, C)
    mesh.fill()
    mesh.lose("server", 0)
    assert mesh.job.is_placed
    mesh.lose("server", 1)
    assert (mesh.job.state, mesh.job.is_placed) == (RECOVERING, False)


def test_the_loss_of_the_last_worker_with_work_ends_all_processes() -> None:
    mesh = Mesh(A, B)
    mesh.recruit(("worker", 2, C))
    mesh.endpoint(mesh.key("worker", 2, 2))
    assert mesh.reassign(Assignment((0, 1, 2), (1.0, 1.0, 0.0), 0, mesh.assignment.shards), 2) is None
    mesh.lose("worker", 0)
    assert (mesh.job.state, mesh.job.is_placed) == (RECOVERING, True)
    mesh.lose("worker", 1)
    assert (mesh.job.state, mesh.job.is_placed) == (RECOVERING, False), "a joiner has no version to go on from"


def test_a_loss_before_all_were_ready_ends_all_processes() -> None:
    mesh = Mesh(A, B, bound=False)
    mesh.lose("worker", 1)
    assert (mesh.job.state, mesh.job.is_placed) == (QUEUED, False)


def test_all_are_done_when_everybody_who_has_work_is() -> None:
    mesh = Mesh(A, B)
    assert not mesh.job.all_completed
    mesh.recruit(("worker", 2, C))
    mesh.endpoint(mesh.key("worker", 2, 2))
    assert mesh.reassign(Assignment((0, 1, 2), (1.0, 1.0, 0.0), 0, mesh.assignment.shards), 2) is None
    mesh.complete(0)
    assert not mesh.job.all_completed
    mesh.complete(1)
    assert mesh.job.all_completed, "a joiner is not waited for"


def test_a_lost_worker_is_not_waited_for_and_does_not_count_as_done() -> None:
    mesh = Mesh(A, B)
    mesh.complete(0)
    mesh.lose("worker", 1)
    assert mesh.job.is_placed
    assert mesh.job.all_completed, "nobody hears of the end before every script is over: it had no work any more"
    mesh = Mesh(A, B)
    mesh.lose("worker", 1)
    assert not mesh.job.all_completed
    mesh.complete(0)
    assert mesh.job.all_completed


def test_recruits_have_indices_of_their_own_and_come_to_a_job_that_runs() -> None:
    assert Mesh(A, B, bound=False).recruit(("worker", 2, C)) == Stale()
    mesh = Mesh(A, B)
    assert mesh.recruit(("worker", 1, C)) == Stale()
    assert mesh.recruit(("server", 2, C), ("worker", 3, C)) is None
    assert (mesh.job.next_index, mesh.job.state, mesh.job.generation) == (4, RUNNING, 1)
    mesh.lose("worker", 3, 2)
    assert mesh.recruit(("worker", 3, C)) == Stale(), "it was another one's"


def test_a_worker_is_ready_once() -> None:
    mesh = Mesh(A, B)
    mesh.recruit(("worker", 2, C))
    ready = mesh.key("worker", 2, 2)
    assert mesh.do(ReadyRole(mesh.request(), ready)) is None
    assert mesh.do(ReadyRole(mesh.request(), ready)) == Stale()
    assert mesh.do(ReadyRole(mesh.request(), mesh.key("worker", 9))) == Stale()


def test_recruits_that_end_before_they_are_of_use_are_counted() -> None:
    mesh = Mesh(A, B)
    mesh.recruit(("server", 2, C), ("worker", 3, C))
    mesh.lose("worker", 3, 2)
    assert (mesh.job.misses, mesh.job.state) == ({C: 1}, RUNNING), "those who train do not notice"
    mesh.recruit(("worker", 4, C))
    assert mesh.do(ReadyRole(mesh.request(), mesh.key("worker", 4, 2))) is None
    mesh.lose("worker", 4, 2)
    mesh.lose("worker", 1)
    assert mesh.job.misses == {C: 1}


def test_a_node_that_misses_too_often_is_called_no_more() -> None:
    mesh = Mesh(A, B)
    for nth in range(limits.MISSES):
        (recruit,) = (command for command in mesh.proposed() if isinstance(command, Recruit))
        assert mesh.do(recruit) is None
        (placement,) = recruit.placements
        assert (placement.node, placement.role.index) == (C, 2 + nth)
        mesh.lose("worker", 2 + nth, 2)
    assert mesh.job.misses == {C: limits.MISSES}
    assert not [command for command in mesh.proposed() if isinstance(command, Recruit)]


def test_of_two_that_cannot_talk_the_one_on_the_later_node_is_replaced() -> None:
    mesh = Mesh(A, B)
    mesh.fill()
    worker, server = mesh.key("worker", 0), mesh.key("server", 1)
    assert mesh.pair(worker, server, 1) == Stale(), "they may talk in this generation"
    assert mesh.pair(worker, mesh.key("server", 9), 2) == Stale()
    assert mesh.pair(worker, worker, 2) == Stale()
    assert mesh.job.pairs == ()
    assert mesh.pair(worker, server, 2) is None
    assert mesh.pair(server, worker, 2) is None
    (lose,) = mesh.proposed()
    assert isinstance(lose, LoseRole)
    assert (lose.role, lose.reason) == (server, PairSilent("server-1", "b", "worker-0", "a", 2_000))
    assert mesh.do(lose) is None
    assert (mesh.job.pairs, mesh.job.misses, mesh.job.state) == ((), {B: 1}, RECOVERING)


def test_of_two_that_cannot_talk_the_recruit_is_replaced() -> None:
    mesh = Mesh(B, C)
    mesh.fill()
    mesh.recruit(("worker", 2, A))
    joiner, server = mesh.key("worker", 2, 3), mesh.key("server", 1)
    mesh.endpoint(joiner)
    assert mesh.pair(server, joiner, 2) is None
    (lose,) = mesh.proposed()
    assert isinstance(lose, LoseRole)
    assert lose.role == joiner, "though the server's node is the later one"
    assert mesh.do(ReadyRole(mesh.request(), joiner)) is None
    (lose,) = mesh.proposed()
    assert isinstance(lose, LoseRole)
    assert lose.role == server, "it is of use now"


def test_who_cannot_talk_in_one_generation_may_in_the_next() -> None:
    mesh = Mesh(A, B)
    assert mesh.pair(mesh.key("worker", 0), mesh.key("server", 1), 1) is None
    assert mesh.reassign(mesh.assignment, 2) is None
    assert mesh.job.pairs == ()


def test_who_is_busy_is_not_parted_from_anybody() -> None:
    mesh = Mesh(A, B)
    mesh.fill()
    worker, server = mesh.key("worker", 0), mesh.key("server", 1)
    assert mesh.do(MarkBusy(mesh.request(), worker, is_busy=True)) is None
    assert mesh.do(MarkBusy(mesh.request(), worker, is_busy=True)) == Stale()
    assert mesh.pair(server, worker, 2) is None
    assert not any(isinstance(command, LoseRole) for command in mesh.proposed())
    told = kind_of(mesh.job).views.running(mesh.job)
    assert "worker-0 on a gives no sign and computes: one call holds the interpreter's lock" in sentence(told)
    assert mesh.do(MarkBusy(mesh.request(), worker, is_busy=False)) is None
    assert (mesh.job.busy, mesh.job.pairs) == ((), ()), "what was said meanwhile is not true any more"
    assert mesh.pair(server, worker, 2) is None
    assert any(isinstance(command, LoseRole) for command in mesh.proposed()), "and if it is, it is said again"


def test_who_is_busy_and_lost_is_forgotten() -> None:
    mesh = Mesh(A, B)
    mesh.fill()
    assert mesh.do(MarkBusy(mesh.request(), mesh.key("worker", 0), is_busy=True)) is None
    mesh.lose("worker", 0)
    assert mesh.job.busy == ()
    assert mesh.do(MarkBusy(mesh.request(), mesh.key("worker", 0), is_busy=True)) == Stale()


def test_a_job_remembers_all_hosts_that_it_was_on() -> None:
    mesh = Mesh(A, B)
    mesh.fill()
    mesh.lose("worker", 1)
    mesh.lose("server", 1)
    assert B not in {node for _, node in mesh.job.roles()}
    assert set(mesh.job.hosts) == {A, B}
