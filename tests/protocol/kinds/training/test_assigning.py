"""Who does what after a loss, and how nodes that are leaving are emptied."""

import pytest

from dmi_protocol import limits
from dmi_protocol.cluster.command import Placement, TrainingSpec
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.kinds.job import RUNNING
from dmi_protocol.kinds.training.assigning import dismissed, is_full, reassign, recruits
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.roles import Assignment, Replicas, Role, RoleKey
from tests.protocol.assignments import bind_all, filled, put

A, B, C, D = (NodeId(letter * 16) for letter in "abcd")


def running(*nodes: NodeId, backups: int | None = None, workers: int | None = None) -> TrainingJob:
    """A server and a worker on each node; all copies that there should be are in sync."""
    spec = TrainingSpec("job", "t.py", backups=backups, workers=workers)
    job = TrainingJob(JobId("job-1"), spec, BlobHash("b" * 64), (A,), 1, RUNNING, runs=True)
    put(job, nodes, nodes)
    assert job.assignment is not None
    job.assignment = filled(job.assignment)
    if backups == 0:
        job.assignment = assigning(job.assignment, *(Replicas(shard) for shard in range(len(nodes))))
    bind_all(job)
    return job


def assigning(assignment: Assignment, *shards: Replicas) -> Assignment:
    return Assignment(assignment.workers, assignment.speeds, assignment.lead, shards)


def assignment_of(job: TrainingJob) -> Assignment:
    assert job.assignment is not None
    return job.assignment


def lose(job: TrainingJob, node: NodeId) -> None:
    job.placements = tuple(placement for placement in job.placements if placement.node != node)
    bind_all(job)


def come(job: TrainingJob, role: Role, index: int, node: NodeId) -> RoleKey:
    """A recruit that is bound."""
    key = RoleKey(job.id, job.generation + 1, role, index)
    job.placements = (*job.placements, Placement(key, node))
    job.next_index = index + 1
    bind_all(job)
    return key


def test_nothing_changes_while_nobody_is_lost() -> None:
    job = running(A, B, C)
    assert reassign(job) == job.assignment
    assert is_full(job, reassign(job), [A, B, C])


def test_the_backup_of_a_lost_primary_leads_and_lost_backups_are_filled_elsewhere() -> None:
    job = running(A, B, C)
    assert assignment_of(job).shards == (Replicas(0, (1,)), Replicas(1, (2,)), Replicas(2, (0,)))
    lose(job, B)
    shards = (Replicas(0, (), (2,)), Replicas(2, (), (0,)), Replicas(2, (0,)))
    assert reassign(job) == Assignment((0, 2), (1.0, 1.0), 0, shards)
    assert not is_full(job, reassign(job), [A, C])


def test_another_worker_leads_when_the_lead_is_lost() -> None:
    job = running(A, B, C)
    lose(job, A)
    assert reassign(job) == Assignment(
        (1, 2), (1.0, 1.0), 1, (Replicas(1, (), (2,)), Replicas(1, (2,)), Replicas(2, (), (1,)))
    )


def test_who_was_being_filled_by_a_lost_primary_is_filled_anew_and_not_promoted() -> None:
    """It may have caught up with that primary: the new one does not know it."""
    job = running(A, B, C, backups=2)
    job.assignment = assigning(assignment_of(job), Replicas(0, (2,), (1,)), *assignment_of(job).shards[1:])
    job.synced = ((0, 1),)
    lose(job, A)
    assert reassign(job).shards[0] == Replicas(2, (), (1,))


def test_who_has_caught_up_is_a_backup() -> None:
    job = running(A, B, C)
    job.assignment = assigning(assignment_of(job), Replicas(0, (), (1,)), Replicas(1, (), (2,)), Replicas(2, (0,)))
    job.synced = ((0, 1),)
    assert reassign(job).shards == (Replicas(0, (1,)), Replicas(1, (), (2,)), Replicas(2, (0,)))


def test_a_shard_has_no_two_copies_on_one_node() -> None:
    job = running(A, B)
    lose(job, B)
    come(job, "server", 9, A)
    assert reassign(job).shards == (Replicas(0), Replicas(0))
    come(job, "server", 10, D)
    assert reassign(job).shards == (Replicas(0, (), (10,)), Replicas(0, (), (10,)))


def test_copies_are_spread_over_the_servers_that_have_the_fewest() -> None:
    job = running(A, B, C, D)
    lose(job, B)
    assert reassign(job).shards[:2] == (Replicas(0, (), (2,)), Replicas(2, (), (0,)))
    come(job, "server", 9, B)
    assert reassign(job).shards[:2] == (Replicas(0, (), (9,)), Replicas(2, (), (9,)))


def test_a_recruited_worker_follows_until_it_is_ready() -> None:
    job = running(A, B)
    lose(job, B)
    joiner = come(job, "worker", 5, C)
    assert (reassign(job).workers, reassign(job).speeds) == ((0, 5), (1.0, 0.0))
    job.ready = (joiner,)
    assert (reassign(job).workers, reassign(job).speeds, reassign(job).lead) == ((0, 5), (1.0, 1.0), 0)
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.key != joiner)
    assert reassign(job).workers == (0,), "nobody is assigned anything before it is bound"


def test_a_worker_that_is_done_stays_and_asks_new_primaries_for_the_final_part() -> None:
    """Simulation, seed 168: the primary was lost with it, and nobody was left to ask its successor."""
    job = running(A, B)
    job.completed = (RoleKey(job.id, 1, "worker", 1),)
    assert reassign(job).workers == (0, 1)


def test_whoever_is_missing_is_called_on_the_least_loaded_nodes() -> None:
    job = running(A, B, workers=2)
    lose(job, B)
    server, worker = recruits(job, [A, C, D], {C: 3})
    assert (server.node, worker.node) == (D, D)
    assert server.role == RoleKey(job.id, 2, "server", job.next_index)
    assert worker.role == RoleKey(job.id, 2, "worker", job.next_index + 1)
    assert recruits(job, [A], {}) == (), "nobody else is there"


def test_a_job_that_did_not_say_how_many_takes_every_node() -> None:
    job = running(A, B)
    (worker,) = recruits(job, [A, B, C], {})
    assert (worker.role.role, worker.node) == ("worker", C), "there are servers enough for the copies"
    assert not is_full(job, assignment_of(job), [A, B, C])


def test_a_node_where_recruits_were_of_no_use_is_not_asked_again() -> None:
    job = running(A, B)
    lose(job, B)
    job.misses = {C: limits.MISSES - 1}
    assert {placement.node for placement in recruits(job, [A, C], {})} == {C}
    job.misses = {C: limits.MISSES}
    assert recruits(job, [A, C], {}) == ()


def names(roles: tuple[RoleKey, ...]) -> list[str]:
    return [f"{role.role}-{role.index}" for role in roles]


def next_generation(job: TrainingJob, leaving: set[NodeId]) -> list[str]:
    """The next generation; gives who was dismissed."""
    assignment = reassign(job, leaving)
    gone = dismissed(job, assignment, leaving)
    job.synced = tuple((shard, server) for shard, r in enumerate(assignment.shards) for server in r.filling)
    job.assignment, job.generation = assignment, job.generation + 1
    job.placements = tuple(placement for placement in job.placements if placement.role not in gone)
    bind_all(job)
    return names(gone)


def test_a_node_that_is_leaving_gives_everything_away_before_its_processes_end() -> None:
    job = running(A, B, C)
    assert next_generation(job, {B}) == []
    assignment = assignment_of(job)
    assert (assignment.workers, assignment.speeds) == ((0, 1, 2), (1.0, 0.0, 1.0)), "no more leaves"
    assert assignment.shards[0] == Replicas(0, (1,), (2,)), "its copy counts until there is another"
    assert assignment.shards[1] == Replicas(2, (), (0,)), "somebody who stays leads"
    assert next_generation(job, {B}) == ["worker-1"]
    assignment = assignment_of(job)
    assert (assignment.workers, assignment.shards) == (
        (0, 2),
        (Replicas(0, (2,)), Replicas(2, (0,)), Replicas(2, (0,))),
    )
    assert next_generation(job, {B}) == ["server-1"]
    assert assignment_of(job) == assignment
    assert is_full(job, assignment, [A, C])
    assert next_generation(job, {B}) == []


def test_the_only_copy_leaves_its_node_once_another_is_in_sync() -> None:
    job = running(A, B, backups=0)
    steps = [Replicas(0, (), (1,)), Replicas(0, (1,)), Replicas(1)]
    gone = []
    for replicas in steps:
        gone += next_generation(job, {A})
        assert assignment_of(job).shards == (replicas, Replicas(1))
    assert gone == ["worker-0"]
    assert next_generation(job, {A}) == ["server-0"]


def test_the_lead_that_leaves_hands_over_first() -> None:
    job = running(A, B)
    next_generation(job, {A})
    assert (assignment_of(job).lead, assignment_of(job).speeds) == (1, (0.0, 1.0))


@pytest.mark.parametrize("backups", [0, 1, 2])
def test_when_all_are_leaving_they_go_on(backups: int) -> None:
    job = running(A, B, C, backups=backups)
    assignment = reassign(job, {A, B, C})
    assert assignment == job.assignment
    assert dismissed(job, assignment, {A, B, C}) == ()


def test_a_recruit_on_a_node_that_is_leaving_is_sent_home() -> None:
    job = running(A, B)
    come(job, "worker", 5, C)
    come(job, "server", 6, C)
    assignment = reassign(job, {C})
    assert assignment == job.assignment
    assert names(dismissed(job, assignment, {C})) == ["server-6", "worker-5"]
