"""What was written is there again, in order, or not at all."""

import sqlite3
from pathlib import Path

import pytest

from dmi_node.storage.journal import Journal, JournalError, has_fact
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import PersistEntries, PersistSnapshot, PersistVote
from dmi_protocol.identity import NodeId
from dmi_protocol.messages.consensus import Entry, Noop, Snapshot, Voters

NODE = NodeId("0123456789abcdef")


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(index, term, Noop()) for index in range(first, last + 1))


def test_it_is_restored_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.sqlite")
    assert journal.restore() == Restored()
    snapshot = Snapshot(2, 1, (NODE,), b"state")
    journal.write([PersistVote(3, NODE), PersistEntries(1, entries(1, 5)), PersistEntries(4, entries(4, 4, 2))])
    journal.write([PersistSnapshot(snapshot, keep_log=True)])
    journal.write([PersistEntries(5, (Entry(5, 3, Voters((NODE,))),))])
    journal.close()
    again = Journal(tmp_path / "state.sqlite").restore()
    assert again == Restored(3, NODE, snapshot, (*entries(3, 3), *entries(4, 4, 2), Entry(5, 3, Voters((NODE,)))))


def test_a_batch_is_whole_or_absent(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.sqlite")
    twice = PersistEntries(1, (*entries(1, 1), *entries(1, 1)))
    with pytest.raises(JournalError, match="cannot be written"):
        journal.write([PersistVote(3, NODE), twice])
    journal.close()
    assert Journal(tmp_path / "state.sqlite").restore() == Restored()


def test_lives_are_counted(tmp_path: Path) -> None:
    lives = []
    for _ in range(3):
        journal = Journal(tmp_path / "state.sqlite")
        lives.append(journal.next_boot())
        journal.close()
    assert lives == [1, 2, 3]


def test_full_sync_and_wal_are_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.sqlite")
    assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert journal._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


@pytest.mark.parametrize("damage", ["garbage", "newer"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.sqlite"
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 1000)
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    with pytest.raises(JournalError, match=r"state\.sqlite"):
        Journal(path)


def test_a_fact_is_seen_from_outside_while_the_node_runs(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    assert not has_fact(path, "identity")
    assert not path.exists()
    path.touch()
    assert not has_fact(path, "identity")
    journal = Journal(path)
    assert not has_fact(path, "identity")
    journal.keep("identity", b"me")
    assert has_fact(path, "identity")
    journal.close()
    assert has_fact(path, "identity")
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(JournalError, match=r"state\.sqlite"):
        has_fact(path, "identity")
