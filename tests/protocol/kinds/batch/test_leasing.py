"""Who computes which slices."""

from dmi_protocol.cluster.command import (
    BatchSpec,
    Drain,
    Finish,
    HoldBlob,
    LeaseSlices,
    Recopy,
    Recruit,
    Remove,
    ReopenSlices,
)
from dmi_protocol.identity import RequestId
from dmi_protocol.kinds.job import FAILED, QUEUED, RECOVERING, RUNNING, SUCCEEDED
from dmi_protocol.reasons import Inferred, ModelLost, NodeLost
from tests.protocol.kinds.batch.table import BUNDLE, A, B, C, Table
from tests.protocol.models import batch


def spec(slices: int, replicas: int | None = None, per_node: int = 1) -> BatchSpec:
    return batch(slices * 4, 4, replicas=replicas, per_node=per_node)


def test_every_replica_has_a_slice_to_compute_and_one_to_read_ahead() -> None:
    table = Table(spec(10))
    table.settle()
    assert (table.job.state, table.job.leases) == (RUNNING, {0: (0, 3), 1: (1, 4), 2: (2, 5)})


def test_what_is_committed_is_followed_by_the_next() -> None:
    table = Table(spec(10))
    table.settle()
    table.commit(1, 1)
    table.settle()
    assert table.job.leases[1] == (4, 6)


def test_there_are_no_more_replicas_than_slices() -> None:
    table = Table(spec(2))
    table.settle()
    assert len(table.job.placements) == 2


def test_replicas_are_on_as_many_nodes_as_are_wanted_and_so_many_on_each() -> None:
    table = Table(spec(20, replicas=2, per_node=3))
    table.settle()
    nodes = [placement.node for placement in table.job.placements]
    assert sorted(map(nodes.count, {A, B, C})) == [0, 3, 3]


def test_who_has_nothing_takes_over_what_was_not_begun() -> None:
    table = Table(spec(4, replicas=2))
    table.settle()
    assert table.job.leases == {0: (0, 2), 1: (1, 3)}
    table.commit(0, 0)
    table.commit(0, 2)
    table.settle()
    assert table.job.leases == {0: (3,), 1: (1,)}


def test_the_last_slices_are_computed_twice_and_never_thrice() -> None:
    table = Table(spec(3))
    table.settle()
    table.commit(0, 0)
    table.commit(1, 1)
    table.settle()
    assert table.job.leases == {0: (2,), 1: (), 2: (2,)}


def test_the_slices_of_a_lost_replica_go_to_the_others_and_another_one_is_called() -> None:
    table = Table(spec(10))
    table.settle()
    table.commit(0, 0)
    table.settle()
    table.lose(0)
    recruit = next(command for command in table.settle() if isinstance(command, Recruit))
    assert [placement.node for placement in recruit.placements] == [A]
    held = [slice_ for slices in table.job.leases.values() for slice_ in slices]
    assert sorted(held) == [1, 2, 3, 4, 5, 6]


def test_a_job_that_loses_everybody_begins_again_where_it_was() -> None:
    table = Table(spec(3, replicas=1))
    table.settle()
    table.commit(0, 0)
    table.settle()
    table.lose(0)
    assert (table.job.state, table.job.placements) == (RECOVERING, ())
    table.settle()
    assert (table.job.state, table.job.generation, table.job.leases[0]) == (RUNNING, 2, (1, 2))


def test_a_node_that_drains_ends_what_it_has_begun_and_nothing_more() -> None:
    table = Table(spec(10))
    table.settle()
    table.do(Drain(RequestId("d"), A, on=True))
    table.settle()
    assert table.job.leases[0] == (0,)
    table.commit(0, 0)
    dismissal = next(c for c in table.settle() if isinstance(c, LeaseSlices) and c.dismissed)
    assert [role.index for role in dismissal.dismissed] == [0]
    assert {placement.node for placement in table.job.placements} == {B, C}


def test_a_job_whose_last_replica_is_dismissed_waits_for_nodes() -> None:
    table = Table(spec(4, replicas=1))
    table.settle()
    for node in (A, B, C):
        table.do(Drain(RequestId(f"d{node}"), node, on=True))
    table.settle()
    table.commit(0, 0)
    table.settle(copy=False)
    assert (table.job.state, table.job.placements, table.job.reason) == (QUEUED, (), None)
    table.do(Drain(RequestId("back"), B, on=False))
    table.settle(copy=False)
    assert [placement.node for placement in table.job.placements] == [B]


def test_it_succeeds_when_every_result_is_on_two_nodes() -> None:
    table = Table(spec(2))
    table.settle()
    table.commit(0, 0, failed=1)
    table.commit(1, 1)
    table.settle(copy=False)
    assert table.job.state == RUNNING
    table.settle()
    assert (table.job.state, table.job.reason) == (SUCCEEDED, Inferred(8, 1))
    assert all(len(result.nodes) == 2 for result in table.job.results.values())


def test_a_mesh_of_one_keeps_its_results_alone() -> None:
    table = Table(spec(1), nodes=[A])
    table.settle()
    table.commit(0, 0)
    table.settle()
    assert table.job.state == SUCCEEDED


def test_what_was_lost_with_all_who_had_it_is_computed_again_at_the_end() -> None:
    table = Table(spec(4))
    table.settle()
    table.commit(0, 0)
    table.nodes.discard(A)
    table.lose(0, NodeLost("replica-0", "a"))
    assert not any(isinstance(command, ReopenSlices) for command in table.settle(copy=False))
    for slice_ in (1, 2, 3):
        table.commit(1, slice_)
    reopened = [command for command in table.settle() if isinstance(command, ReopenSlices)]
    assert [(command.slices, command.gone) for command in reopened] == [((0,), (A,))]
    table.commit(1, 0)
    table.settle()
    assert (table.job.state, A in table.job.results[0].nodes) == (SUCCEEDED, False)


def test_all_are_done_when_the_last_replica_is_lost() -> None:
    table = Table(spec(1))
    table.settle()
    table.commit(0, 0)
    table.lose(0)
    table.settle()
    assert table.job.state == SUCCEEDED


def test_what_was_lost_with_the_last_replica_is_computed_again_by_another() -> None:
    """Simulation, seed 371: the only slice was committed, and its node expelled before there was a second copy."""
    table = Table(spec(1))
    table.settle()
    table.commit(0, 0)
    table.nodes.discard(A)
    table.lose(0, NodeLost("replica-0", "a"))
    assert (table.job.state, table.job.placements) == (RECOVERING, ())
    reopened = [command for command in table.settle() if isinstance(command, ReopenSlices)]
    assert [(command.slices, command.gone) for command in reopened] == [((0,), (A,))]
    table.commit(table.job.placements[0].role.index, 0)
    table.settle()
    assert table.job.state == SUCCEEDED


def test_a_job_whose_model_is_lost_ends_and_says_so() -> None:
    table = Table(batch())
    table.do(Recopy(RequestId("copy"), table.id, BUNDLE, C))
    table.do(HoldBlob(RequestId("held"), table.id, BUNDLE, C))
    for node in (A, B):
        assert not any(isinstance(command, Finish) for command in table.propose())
        table.do(Remove(RequestId(f"remove-{node}"), node))
        table.nodes.discard(node)
    (end,) = (command for command in table.propose() if isinstance(command, Finish))
    assert (end.state, end.reason) == (FAILED, ModelLost("m:1"))


def test_a_replica_that_has_loaded_a_lost_model_computes_on() -> None:
    table = Table(batch())
    table.do(Recopy(RequestId("copy"), table.id, BUNDLE, C))
    table.do(HoldBlob(RequestId("held"), table.id, BUNDLE, C))
    table.settle(copy=False)
    for node in (A, B):
        table.do(Remove(RequestId(f"remove-{node}"), node))
        table.nodes.discard(node)
    assert not any(isinstance(command, Finish) for command in table.propose())
