"""Replicas on a node: what they are told, and what follows from what they say."""

import msgspec

from dmi_protocol.cluster.command import CommitSlice, Drain, Finish, HoldBlob, Recopy, Remove, Submit
from dmi_protocol.effects import FetchBlob, StartRole, TellRole
from dmi_protocol.identity import BlobHash, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.hosting import Hosting
from dmi_protocol.kinds.job import FAILED
from dmi_protocol.kinds.kind import Host
from dmi_protocol.limits import FETCH_AGAIN_MS
from dmi_protocol.messages.roles import BatchLaunch, Bound, Slices, SliceWritten
from dmi_protocol.reasons import FilesLost, Malformed
from tests.protocol.kinds.batch.table import BUNDLE, A, B, C, Table, blob
from tests.protocol.models import WEIGHTS, batch

HERE = Host(C, "c", "h", (1, 2))
SPEC = batch(10, 1)


def hosting(table: Table) -> Hosting:
    """On the third node, whose replica has started."""
    found = Hosting(HERE, lambda _: None)
    effects, _ = found.reconcile(Instant(0), table.state)
    wanted = [effect for effect in effects if isinstance(effect, FetchBlob)]
    assert wanted == [FetchBlob(BUNDLE, (A, B)), FetchBlob(WEIGHTS, (A, B))]
    assert found.arrived(Instant(0), table.state, BUNDLE) == ([], [])
    started, _ = found.arrived(Instant(0), table.state, WEIGHTS)
    (start,) = started
    assert isinstance(start, StartRole)
    assert isinstance(start.launch, BatchLaunch)
    assert (start.launch.inputs, start.launch.slice_inputs, start.launch.bundle_hash) == (10, 1, BUNDLE)
    found.happened(table.role(2), Bound("h:2", PublicKey("k" * 40), 7))
    return found


def begun() -> tuple[Table, Hosting]:
    table = Table(SPEC)
    table.do(table.propose()[0])
    found = hosting(table)
    table.settle()
    return table, found


def told(found: Hosting, table: Table) -> list[Slices]:
    effects, _ = found.reconcile(Instant(0), table.state)
    return [e.message for e in effects if isinstance(e, TellRole) and isinstance(e.message, Slices)]


def test_a_replica_is_told_its_slices_whenever_leases_are_decided_on() -> None:
    table, found = begun()
    (first,) = told(found, table)
    assert (first.decided, first.slices) == (table.job.decided, table.job.leases[2])
    assert told(found, table) == []
    table.commit(2, first.slices[0])
    table.settle()
    (second,) = told(found, table)
    assert second.decided > first.decided
    assert second.slices == table.job.leases[2]


def test_a_result_is_committed_once_however_often_it_is_said() -> None:
    table, found = begun()
    written = SliceWritten(1, 2, blob(2), "/result", 5, 0)
    (fact,) = found.happened(table.role(2), written)
    assert isinstance(fact, CommitSlice)
    assert (fact.slice, fact.blob, fact.size_bytes) == (2, blob(2), 5)
    assert found.happened(table.role(2), written) == [fact]
    (again,) = found.happened(table.role(2), SliceWritten(2, 2, blob(2), "/result", 5, 0))
    assert again.request != fact.request, "computed again for another lease, it is another fact"


def test_a_result_stays_until_the_state_speaks_of_it_and_as_long_as_it_does() -> None:
    table, found = begun()
    found.happened(table.role(2), SliceWritten(1, 2, blob(2), "/result", 5, 0))
    assert found.drop_kept(table.state) == []
    table.commit(2, 2)
    assert found.drop_kept(table.state) == []
    table.job.results.clear()
    dropped = [effect.blob for effect in found.drop_kept(table.state) if hasattr(effect, "blob")]
    assert dropped == [blob(2)]


def test_a_holder_elsewhere_is_asked_for_a_copy() -> None:
    table, _ = begun()
    table.commit(2, 2)
    job = table.job
    job.copies[blob(2)] = A
    effects, _ = Hosting(Host(A, "a", "h", (1, 2)), lambda _: None).reconcile(Instant(0), table.state)
    assert FetchBlob(BlobHash(blob(2)), (C,)) in effects


PACKS = tuple(BlobHash(f"{slice_:x}" * 64) for slice_ in range(10))


def fetched(found: Hosting, table: Table) -> list[BlobHash]:
    effects, _ = found.reconcile(Instant(0), table.state)
    assert not [effect for effect in effects if isinstance(effect, TellRole)], "its inputs are not here"
    return [effect.blob for effect in effects if isinstance(effect, FetchBlob)]


def test_a_slice_is_told_once_its_inputs_are_here() -> None:
    table = Table(msgspec.structs.replace(SPEC, packs=PACKS))
    table.do(table.propose()[0])
    found = hosting(table)
    table.settle(copy=False)
    first, second = table.job.leases[2]
    assert fetched(found, table) == [PACKS[first], PACKS[second]]
    assert found.arrived(Instant(1), table.state, PACKS[second]) == ([], [])
    (tell,), _ = found.arrived(Instant(2), table.state, PACKS[first])
    assert isinstance(tell, TellRole)
    assert isinstance(tell.message, Slices)
    assert (tell.message.slices, tell.message.packs) == ((first, second), (PACKS[first], PACKS[second]))

    table.commit(2, first)
    table.settle(copy=False)
    (_, third) = table.job.leases[2]
    assert fetched(found, table) == [PACKS[third]], "the other one is here"
    found.missing(Instant(3), PACKS[third])
    again, _ = found.tick(Instant(3 + FETCH_AGAIN_MS), table.state)
    assert again == [FetchBlob(PACKS[third], (A, B))]
    (tell,), _ = found.arrived(Instant(9_999), table.state, PACKS[third])
    assert isinstance(tell, TellRole)
    assert isinstance(tell.message, Slices)
    assert tell.message.slices == (second, third)
    assert found.drop_kept(table.state) == [], "inputs stay while the job goes on"


def test_inputs_are_copied_when_a_holder_leaves_and_a_job_without_them_ends() -> None:
    table = Table(msgspec.structs.replace(SPEC, packs=PACKS))
    table.settle()
    table.do(Drain(RequestId("drain"), A, on=True))
    copies = {command.blob for command in table.propose() if isinstance(command, Recopy) and command.owner == table.id}
    assert copies >= set(PACKS)
    table.settle()
    assert all(C in nodes for nodes in table.job.packs.values())

    lost = Table(msgspec.structs.replace(SPEC, packs=PACKS))
    lost.settle(copy=False)
    lost.do(Recopy(RequestId("copy"), lost.id, BUNDLE, C))
    lost.do(HoldBlob(RequestId("held"), lost.id, BUNDLE, C))
    for node in (A, B):
        lost.do(Remove(RequestId(f"remove-{node}"), node))
        lost.nodes.discard(node)
    (end,) = (command for command in lost.propose() if isinstance(command, Finish))
    assert (end.state, end.reason) == (FAILED, FilesLost())


def test_inputs_travel_for_every_slice_or_for_none() -> None:
    table = Table(SPEC)
    few = msgspec.structs.replace(SPEC, packs=PACKS[:3])
    assert table.do(Submit(RequestId("few"), few, BUNDLE, (A,))).refusal == Malformed("job", "b")
