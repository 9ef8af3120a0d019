"""The simulated disk itself: what it may lose, and what it may not."""

from random import Random

from dmi_protocol.cluster.command import Cancel
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Effect, PersistEntries, PersistSnapshot, PersistVote
from dmi_protocol.identity import JobId, NodeId, RequestId
from dmi_protocol.messages.consensus import Entry, Snapshot
from tests.simulation.disk import Disk

A, B = NodeId("a"), NodeId("b")


def entry(index: int, term: int = 1) -> Entry:
    return Entry(index, term, Cancel(RequestId(f"{index}/{term}"), JobId("x")))


def test_writes_replace_the_tail_and_snapshots_the_head() -> None:
    disk = Disk(Restored())
    disk.write(PersistEntries(1, (entry(1), entry(2), entry(3))))
    disk.write(PersistEntries(2, (entry(2, 2),)))
    assert disk.entries == [entry(1), entry(2, 2)]
    assert disk.truncations == 1
    disk.write(PersistSnapshot(Snapshot(1, 1, (A,), b""), keep_log=True))
    assert disk.restored() == Restored(0, None, Snapshot(1, 1, (A,), b""), (entry(2, 2),))
    assert disk.has(entry(1)), "it is in the snapshot"
    assert not disk.has(entry(2, 1))


def test_a_torn_write_leaves_a_prefix() -> None:
    writes: list[Effect] = [PersistVote(5, B), PersistEntries(2, (entry(2, 5), entry(3, 5)))]
    outcomes = set()
    for seed in range(200):
        disk = Disk(Restored(4, A, None, (entry(1), entry(2))))
        lost = disk.tear(writes, Random(seed))
        kept = tuple((e.index, e.term) for e in disk.entries)
        outcomes.add((disk.term, kept, lost))
    whole = ((1, 1), (2, 5), (3, 5))
    assert outcomes == {
        (4, ((1, 1), (2, 1)), True),
        (5, ((1, 1),), True),
        (5, ((1, 1), (2, 5)), True),
        (5, whole, True),
        (5, whole, False),
    }
