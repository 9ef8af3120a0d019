"""What the coordinator proposes for the jobs."""

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import (
    BindRole,
    Command,
    CompleteRole,
    Drain,
    Finish,
    HoldBlob,
    KeepPart,
    LoseRole,
    Part,
    Place,
    Recopy,
    Remove,
    Submit,
    TrainingSpec,
)
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.job import FAILED, RECOVERING, SUCCEEDED
from dmi_protocol.kinds.training.state import KeptPart
from dmi_protocol.placement.holding import only_here
from dmi_protocol.reasons import FilesLost, NodeLost, Stale, Succeeded
from tests.protocol.assignments import servers, start_of, training, workers

A, B, C = NODES = tuple(NodeId(letter * 16) for letter in "abc")
ALL = frozenset(NODES)
NOW = Instant(0)


class Table:
    """A state, and every command applied to it in order."""

    def __init__(self, *specs: TrainingSpec, witness: NodeId | None = None) -> None:
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
        self.recopied = [command for command in done if isinstance(command, Recopy)]
        return [command for command in done if isinstance(command, Place | Finish)]

    def copy(self) -> None:
        """Whoever is to keep a further copy does."""
        for job in self.state.jobs.values():
            for blob, node in list(job.copies.items()):
                request = RequestId(f"hold-{blob}-{node}-{self.state.applied}")
                apply(self.state, self.state.applied + 1, HoldBlob(request, job.id, blob, node))

    def bind(self, job: JobId) -> None:
        for role, _ in self.state.jobs[job].roles():
            request = RequestId(f"{role.generation}/{role.role}-{role.index}")
            apply(self.state, self.state.applied + 1, BindRole(request, role, "h:2", PublicKey("k" * 40), 7))


def spec(workers: int | None = None) -> TrainingSpec:
    return TrainingSpec("job", "t.py", workers=workers)


def test_jobs_are_placed_in_the_order_of_their_submission_and_the_load_is_spread() -> None:
    table = Table(spec(1), spec(1))
    first, second = table.propose()
    assert isinstance(first, Place)
    assert isinstance(second, Place)
    assert [first.job, second.job] == table.jobs
    assert (workers(first.placements), workers(second.placements)) == ((A,), (B,))
    assert table.propose() == []


def test_a_job_waits_for_nodes() -> None:
    table = Table(spec(3))
    assert table.propose(alive=frozenset({A, B})) == []
    assert len(table.propose()) == 1


def test_a_witness_plays_no_role() -> None:
    (place,) = Table(spec(), witness=B).propose()
    assert isinstance(place, Place)
    assert workers(place.placements) == servers(place.placements) == (A, C)


def test_a_node_lost_while_the_job_starts_costs_a_generation() -> None:
    table = Table(spec(2))
    table.propose()
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert (again.generation, set(workers(again.placements))) == (2, {B, C})


def test_a_node_lost_while_the_job_starts_is_waited_for_when_there_is_no_other() -> None:
    table = Table(spec(3))
    table.propose()
    assert table.propose(alive=frozenset({B, C})) == []
    assert training(table.state, table.jobs[0]).state == "queued"
    (again,) = table.propose()
    assert isinstance(again, Place)
    assert (again.generation, workers(again.placements)) == (2, NODES)


def test_a_job_that_ran_makes_do_with_the_nodes_that_are_left() -> None:
    table = Table(spec(3))
    table.propose()
    table.bind(table.jobs[0])
    assert table.propose() == []
    (again,) = table.propose(alive=frozenset({A, C}))
    assert isinstance(again, Place)
    assert (
        again.generation,
        workers(again.placements),
        servers(again.placements),
        start_of(again).checkpoint_holders,
    ) == (
        2,
        (A, C),
        (A, C),
        (C, A),
    )
    assert start_of(again).restore is None
    job = training(table.state, table.jobs[0])
    assert (job.state, job.reason) == (RECOVERING, NodeLost("server-1", "b"))


def keep(table: Table, job: JobId, step: int, *, final: bool = False) -> None:
    """A whole checkpoint of the placement in force."""
    placed = training(table.state, job)
    for shard, nodes in enumerate(zip(placed.primaries(), placed.checkpoint_holders, strict=True)):
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
    found = training(table.state, job)
    assert (found.state, found.is_placed, found.reason) == (RECOVERING, False, NodeLost("server-0", "a"))
    assert found.parts_away({C}) == (A, B)
    (again,) = table.propose(alive=frozenset({A, C}))
    assert isinstance(again, Place)
    assert (start_of(again).restore, workers(again.placements)) == (4, (A, C))


def test_a_checkpoint_holder_that_is_away_is_replaced() -> None:
    table = Table(TrainingSpec("job", "t.py", workers=1, backups=0))
    table.propose()
    job = training(table.state, table.jobs[0])
    assert (servers(job.placements)[:1], job.checkpoint_holders) == ((A,), (B,))
    for alive, checkpoint_holders in (({A, C}, (C,)), (ALL, (C,)), ({A}, ()), ({A, B}, (B,))):
        assert table.propose(alive=frozenset(alive)) == []
        assert job.checkpoint_holders == checkpoint_holders, "one that is there stays; nobody is better than a dead one"
    assert job.generation == 1


def test_a_server_whose_last_words_a_worker_may_miss_is_a_loss() -> None:
    """Simulation, seed 242: the worker waited for ever."""
    table = Table(spec(2))
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    server, _ = training(table.state, job).roles()[0]
    apply(table.state, 50, CompleteRole(RequestId("done"), server))
    keep(table, job, 12, final=True)
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert start_of(again).restore == 12


def test_a_node_lost_after_its_roles_are_done_is_a_loss_only_before_the_final_parts_are_safe() -> None:
    for is_safe in (True, False):
        table = Table(spec(1))
        table.propose()
        (job,) = table.jobs
        table.bind(job)
        for role, _ in training(table.state, job).roles():
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
            assert workers(command.placements) == (B,)


def test_a_node_whose_processes_cannot_talk_is_done_without_in_the_next_start() -> None:
    """Two hosts with a cut between them would be placed again and again, and never make a step."""
    table = Table(spec())
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    training(table.state, job).misses[B] = limits.MISSES
    (again,) = table.propose(alive=frozenset({B, C}))
    assert isinstance(again, Place)
    assert workers(again.placements) == (C,)


PART = BlobHash("1" * 64)


def finished(spec_: TrainingSpec) -> tuple[Table, JobId]:
    """A job that has succeeded, its one part on A and B."""
    table = Table(spec_)
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    for role, _ in training(table.state, job).roles():
        apply(table.state, 50, CompleteRole(RequestId(f"done-{role.role}"), role))
    keep(table, job, 12, final=True)
    (end,) = table.propose()
    assert isinstance(end, Finish)
    return table, job


def drain(table: Table, node: NodeId) -> None:
    apply(table.state, table.state.applied + 1, Drain(RequestId(f"drain-{node}"), node, on=True))


def remove(table: Table, node: NodeId) -> None:
    apply(table.state, table.state.applied + 1, Remove(RequestId(f"remove-{node}"), node))


def part_of(table: Table, job: JobId) -> tuple[NodeId, ...]:
    checkpoint = training(table.state, job).checkpoint
    assert checkpoint is not None
    return checkpoint.parts[0].nodes


def test_what_a_draining_node_has_is_copied_away_and_then_it_is_not_needed() -> None:
    table, job = finished(spec(1))
    assert part_of(table, job) == (A, B)
    assert only_here(table.state, A) == (PART,)
    drain(table, A)
    table.propose()
    assert [(command.blob, command.node) for command in table.recopied] == [(PART, C)]
    assert only_here(table.state, A) == (PART,), "not before it is there"
    table.copy()
    assert part_of(table, job) == (A, B, C)
    assert only_here(table.state, A) == ()
    assert table.propose() == []
    assert table.recopied == []


def test_after_all_old_nodes_have_left_one_by_one_the_last_ones_have_everything() -> None:
    table, job = finished(spec(1))
    for node in (A, B):
        drain(table, node)
        table.propose()
        table.copy()
        assert only_here(table.state, node) == ()
        remove(table, node)
    assert C in part_of(table, job)


def test_what_an_expelled_node_had_is_copied_from_the_other() -> None:
    table, _job = finished(spec(1))
    remove(table, A)
    table.propose()
    assert [(command.blob, command.node) for command in table.recopied] == [(PART, C)]


def test_copies_are_asked_for_once_however_late_the_log_is() -> None:
    table = Table(spec(1), spec(1), spec(1))
    drain(table, A)  # which alone has the three bundles
    first = table.scheduler.propose(NOW, table.state, ALL)
    copies = [command for command in first if isinstance(command, Recopy)]
    assert len({command.owner for command in copies}) == 3
    apply(table.state, table.state.applied + 1, copies[0])
    again = [c for c in table.scheduler.propose(NOW, table.state, ALL) if isinstance(c, Recopy)]
    assert {command.request for command in again} == {command.request for command in copies[1:]}
    late = replace(copies[0], request=RequestId("decided by another coordinator"))
    assert apply(table.state, table.state.applied + 1, late).refusal == Stale()


def test_one_owner_s_copies_do_not_rename_each_other() -> None:
    table, job = finished(spec(1))
    extra = BlobHash("e" * 64)
    checkpoint = training(table.state, job).checkpoint
    assert checkpoint is not None
    other = KeptPart(1, extra, 1, (A, B))
    training(table.state, job).checkpoint = replace(checkpoint, parts=(*checkpoint.parts, other))
    drain(table, A)
    copies = table.scheduler.propose(NOW, table.state, ALL)
    assert {command.blob for command in copies if isinstance(command, Recopy)} == {PART, extra}
    apply(table.state, table.state.applied + 1, copies[0])
    assert table.scheduler.propose(NOW, table.state, ALL) == copies[1:]


def test_a_dead_node_is_waited_for_and_then_not_counted_on() -> None:
    table, _job = finished(spec(1))
    table.propose(alive=frozenset({B, C}))
    assert table.recopied == [], "it may be back in a moment"
    due = Instant(limits.RECOPY_MS)
    assert table.scheduler.deadline() == due
    table.propose(due, alive=frozenset({B, C}))
    assert [(command.blob, command.node) for command in table.recopied] == [(PART, C)]
    assert table.scheduler.deadline() is None
    table.copy()
    table.propose(due, alive=frozenset({A, B, C}))
    assert table.recopied == []


def test_a_new_checkpoint_holder_that_is_lost_too_is_replaced() -> None:
    table, _job = finished(spec(1))
    drain(table, A)
    table.propose()
    drain(table, C)
    drain(table, B)
    apply(table.state, 90, Drain(RequestId("again"), A, on=False))
    table.propose()
    assert table.recopied == [], "A is there again, and no other node is fit"
    assert only_here(table.state, B) == ()


def test_the_files_of_a_job_that_waits_are_copied_and_without_any_it_ends() -> None:
    table = Table(TrainingSpec("job", "t.py", workers=3))
    (job,) = table.jobs
    drain(table, A)
    table.propose(alive=ALL)
    assert [command.node for command in table.recopied] == [B]
    table.copy()
    assert training(table.state, job).holders == (A, B)
    for node in (A, B):
        remove(table, node)
    (end,) = table.propose(alive=frozenset({C}))
    assert isinstance(end, Finish)
    assert (end.state, end.reason) == (FAILED, FilesLost())


def test_a_job_goes_on_from_parts_that_only_a_draining_node_has() -> None:
    table = Table(spec(1))
    table.propose()
    (job,) = table.jobs
    table.bind(job)
    keep(table, job, 4)
    for node in (A, B):
        drain(table, node)
    role, _ = training(table.state, job).roles()[0]
    for role, _ in training(table.state, job).roles():
        apply(table.state, 60, LoseRole(RequestId(f"lost-{role.name}"), role, NodeLost(role.name, "a")))
    (again,) = table.propose()
    assert isinstance(again, Place)
    assert (start_of(again).restore, workers(again.placements)) == (4, (C,))
