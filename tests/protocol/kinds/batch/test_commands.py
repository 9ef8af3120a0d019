"""What commands do to a batch inference."""

import pytest

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    BatchSpec,
    BindRole,
    Cancel,
    LeaseSlices,
    ReadyRole,
    Recruit,
    RemoveJob,
    ReopenSlices,
    Submit,
)
from dmi_protocol.identity import PublicKey, RequestId
from dmi_protocol.kinds.job import FAILED
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.reasons import CrashedOften, JobGoesOn, Malformed, RoleFailed, Stale, UnknownJob, UnknownModel
from dmi_protocol.sentences import sentence
from tests.protocol.kinds.batch.table import BUNDLE, A, B, Table, blob
from tests.protocol.models import batch

SPEC = batch()


def begun() -> Table:
    table = Table(SPEC)
    table.settle()
    return table


@pytest.mark.parametrize(
    "spec",
    [
        batch(inputs=0, slice_inputs=4),
        batch(inputs=4, slice_inputs=0),
        batch(inputs=4, slice_inputs=4, replicas=-1),
        batch(inputs=4, slice_inputs=4, per_node=0),
        batch(inputs=4, slice_inputs=4, per_node=limits.REPLICAS_PER_NODE + 1),
        batch(inputs=limits.SLICES + 1, slice_inputs=1),
    ],
)
def test_numbers_that_no_job_can_have_are_refused(spec: BatchSpec) -> None:
    table = Table(SPEC)
    outcome = table.do(Submit(RequestId("odd"), spec, BUNDLE, (A,)))
    assert outcome.refusal == Malformed("job", "b")


def test_the_last_slice_is_shorter() -> None:
    job = begun().job
    assert [job.inputs_of(slice_) for slice_ in range(job.spec.slices)] == [4, 4, 2]


def test_the_first_result_counts_and_other_bytes_do_not() -> None:
    table = begun()
    assert table.commit(0, 0).refusal is None
    assert table.commit(1, 0, what="other").refusal == Stale()
    assert (table.job.results[0].blob, table.job.results[0].nodes) == (blob(0), (A,))


def test_who_has_computed_the_same_bytes_has_a_copy_of_them() -> None:
    table = begun()
    table.commit(0, 0)
    assert table.commit(1, 0).refusal is None
    assert table.commit(1, 0).refusal == Stale()
    assert table.job.results[0].nodes == (A, B)


@pytest.mark.parametrize(("slice_", "failed"), [(-1, 0), (3, 0), (2, 3), (0, -1)])
def test_what_cannot_be_is_no_result(slice_: int, failed: int) -> None:
    table = begun()
    assert table.commit(0, slice_, failed=failed).refusal == Stale()
    assert not table.job.results


def test_a_slice_that_was_committed_meanwhile_is_left_out_of_a_lease() -> None:
    table = begun()
    table.commit(0, 0)
    assert lease(table, (1, (0, 1))).refusal is None
    assert table.job.leases[1] == (1,)


def lease(table: Table, *leases: tuple[int, tuple[int, ...]], dismissed: tuple[RoleKey, ...] = ()):  # type: ignore[no-untyped-def]
    request = RequestId(f"lease-{table.job.decided}-{leases}")
    return table.do(LeaseSlices(request, table.id, table.job.generation, leases, dismissed))


@pytest.mark.parametrize(
    "leases", [(), ((9, (0,)),), ((0, (0, 0)),), ((0, (0, 1, 2)),), ((0, (7,)),), ((0, (1,)), (0, (2,)))]
)
def test_odd_leases_are_refused(leases: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
    table = begun()
    before = dict(table.job.leases)
    assert lease(table, *leases).refusal == Stale()
    assert table.job.leases == before


def test_nobody_is_dismissed_who_is_not_there() -> None:
    table = begun()
    assert lease(table, dismissed=(RoleKey(table.id, 1, "replica", 9),)).refusal == Stale()


def test_a_result_that_somebody_has_is_not_given_up() -> None:
    table = begun()
    table.commit(0, 0)
    table.commit(1, 0)
    job = table.job
    assert table.do(ReopenSlices(RequestId("r"), job.id, job.generation, (0, 1), (A,))).refusal == Stale()
    assert table.do(ReopenSlices(RequestId("s"), job.id, job.generation, (0, 1), (A, B))).refusal is None
    assert not table.job.results


def test_a_command_of_a_training_means_nothing() -> None:
    table = begun()
    assert table.do(ReadyRole(RequestId("r"), table.role(0))).refusal == Stale()


def test_it_is_given_up_when_it_crashes_on_and_on_without_getting_any_further() -> None:
    table = Table(batch(inputs=10, slice_inputs=1, replicas=1))
    for crash in range(limits.CRASHES + 1):
        table.settle()
        if crash == 1:
            table.commit(0, 0)
        assert table.job.state != FAILED
        table.lose(0, RoleFailed("replica-0", "n", "script", "it raises"))
        if table.job.state == FAILED:
            break
    assert isinstance(table.job.reason, CrashedOften)
    assert crash == limits.CRASHES


def test_the_model_must_be_known_and_be_what_was_meant() -> None:
    table = Table(SPEC)
    nobody = table.do(Submit(RequestId("nobody"), batch(model="m:2"), BUNDLE, (A,)))
    assert nobody.refusal == UnknownModel("m:2")
    other = table.do(Submit(RequestId("other"), batch(blob=blob(7)), BUNDLE, (A,)))
    assert other.refusal == UnknownModel("m:1")


def ready(table: Table, index: int, *machine: tuple[str, str]) -> None:
    role = table.role(index)
    table.do(BindRole(RequestId(f"bind/{role.generation}/{index}"), role, "h:2", PublicKey("k" * 40), 7, machine))


def test_a_host_that_computes_other_bits_takes_no_part() -> None:
    table = Table(SPEC)
    table.do(table.propose()[0])
    ready(table, 1, ("CPU capability", "AVX512"), ("torch threads", "1"))
    ready(table, 0, ("CPU capability", "AVX512"), ("torch threads", "1"))
    node = dict(table.job.roles())[table.role(2)]
    ready(table, 2, ("CPU capability", "AVX2"), ("torch threads", "1"))
    assert [record.endpoint.key.index for record in table.job.endpoints] == [1, 0]
    assert table.job.reason == RoleFailed(
        "replica-2",
        node[0],
        "machine",
        "its CPU capability is AVX2, and that of the first replica AVX512: results would differ",
    )
    for _ in range(limits.MISSES - 1):  # it may have been mended meanwhile; then the job does without it
        for command in table.propose():
            table.do(command)
        last = max(role.index for role, _ in table.job.roles())
        ready(table, last, ("CPU capability", "AVX2"), ("torch threads", "1"))
    assert table.job.misses == {node: limits.MISSES}
    assert not any(isinstance(command, Recruit) for command in table.propose())
    assert table.job.crashes == 0


def test_who_comes_first_decides_again_while_nothing_was_computed() -> None:
    table = Table(batch(replicas=1))
    table.do(table.propose()[0])
    ready(table, 0, ("CPU capability", "AVX512"))
    table.lose(0)
    table.do(table.propose()[0])
    ready(table, 0, ("CPU capability", "AVX2"))
    assert table.job.machine == (("CPU capability", "AVX2"),)
    table.commit(0, 0)
    table.lose(0)
    assert table.job.machine == (("CPU capability", "AVX2"),)


def test_a_job_that_has_ended_can_be_removed_and_its_results_are_freed() -> None:
    table = begun()
    assert table.do(RemoveJob(RequestId("early"), table.id)).refusal == JobGoesOn(table.id, "running")
    table.do(Cancel(RequestId("cancel"), table.id))
    assert table.do(RemoveJob(RequestId("rm"), table.id)).refusal is None
    assert table.state.jobs == {}
    assert table.do(RemoveJob(RequestId("again"), table.id)).refusal == UnknownJob(table.id)


def test_a_host_with_too_little_memory_is_done_without_and_that_is_no_crash() -> None:
    table = begun()
    node = dict(table.job.roles())[table.role(2)]
    for _ in range(limits.MISSES):
        last = max(role.index for role, at in table.job.roles() if at == node)
        table.lose(last, RoleFailed(f"replica-{last}", node[0], "memory", "it needs more"))
        for command in table.propose():
            table.do(command)
    assert (table.job.misses, table.job.crashes) == ({node: limits.MISSES}, 0)
    assert node not in dict(table.job.roles()).values()


@pytest.mark.parametrize("kind", ["disk", "input", "memory", "cannot-start-here"])
def test_whatever_a_replica_fails_of_it_is_not_tried_for_ever(kind: str) -> None:
    """Also what may pass, as a full disk: with a slice between two failures it goes on."""
    table = begun()
    failures = 0
    while table.job.state != FAILED:
        index = table.job.placements[0].role.index
        table.lose(index, RoleFailed(f"replica-{index}", "a", kind, "OSError: again"))
        failures += 1
        assert failures <= limits.FAILURES
        if table.job.state != FAILED:
            table.settle()
        if failures == 3 and not table.job.results:
            table.commit(table.job.placements[0].role.index, 0)
            failures = 0
    assert isinstance(table.job.reason, CrashedOften)
    assert "OSError: again" in sentence(table.job.reason)
