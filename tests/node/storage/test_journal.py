"""What was written is there again, in order, or not at all."""

import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from dmi_node.storage import journal as module
from dmi_node.storage.journal import Journal, JournalError, UnwritableError, has_fact
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


def test_what_is_settled_is_there_without_the_log_beside_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.sqlite")
    journal.write([PersistVote(3, NODE)])
    journal.keep("identity", b"a")
    journal.settle()
    (tmp_path / "copy.sqlite").write_bytes((tmp_path / "state.sqlite").read_bytes())
    copy = Journal(tmp_path / "copy.sqlite")
    assert (copy.fact("identity"), copy.restore()) == (b"a", Restored(3, NODE))


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


def full(path: Path) -> bytes:
    """A journal with all that it may hold, closed; gives its bytes."""
    journal = Journal(path)
    journal.write(
        [PersistSnapshot(Snapshot(2, 1, (NODE,), bytes(range(256)) * 200), keep_log=True), PersistVote(3, NODE)]
    )
    many = Voters(tuple(NodeId(f"{n:016x}") for n in range(100)))
    journal.write([PersistEntries(3, tuple(Entry(index, 2, many) for index in range(3, 60)))])
    journal.keep("identity", b"somebody" * 2_000)
    journal.close()
    return path.read_bytes()


def all_of(path: Path) -> tuple[Restored, bytes | None]:
    journal = Journal(path)
    try:
        found = journal.restore(), journal.fact("identity")
        journal.next_boot()
        return found
    finally:
        journal.close()


@pytest.mark.parametrize("damage", ["zeros", "noise", "one bit"])
def test_a_damaged_page_anywhere_is_a_sentence(tmp_path: Path, damage: str) -> None:
    """Or it was one that nothing lies on: then everything is there."""
    path = tmp_path / "state.sqlite"
    whole = full(path)
    wanted = all_of(path)
    chance, told = random.Random(1), []
    for start in range(0, len(whole), 4096):
        page = bytearray(whole[start : start + 4096])
        if damage == "zeros":
            page = bytearray(len(page))
        elif damage == "noise":
            page = bytearray(chance.randbytes(len(page)))
        else:
            page[chance.randrange(len(page))] ^= 1 << chance.randrange(8)
        for name in ("state.sqlite-wal", "state.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        path.write_bytes(whole[:start] + page + whole[start + 4096 :])
        try:
            assert all_of(path) == wanted
        except JournalError as error:
            told.append(str(error))
    assert len(told) >= len(whole) // 4096 // 2, "most pages hold something"
    assert [line for line in told if str(path) not in line or len(line.splitlines()) > 1] == []


def test_what_an_earlier_version_wrote_is_read_and_gets_its_sums(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    full(path)
    wanted = all_of(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for table in ("vote", "entry", "snapshot", "fact"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN sum")
        db.execute("PRAGMA user_version = 1")
    assert all_of(path) == wanted
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        db.execute("UPDATE vote SET term = 4")
        db.commit()
    with pytest.raises(JournalError, match="checksum of a row of vote"):
        all_of(path)


def test_a_lock_that_a_backup_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.sqlite"
    monkeypatch.setattr(module, "_WRITE_S", 0.05)
    journal = Journal(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as backup:
        backup.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnwritableError, match="locked"):
            journal.write([PersistVote(3, NODE)])
        with pytest.raises(UnwritableError, match="locked"):
            journal.keep("name", b"value")
        backup.execute("ROLLBACK")
        journal.write([PersistVote(3, NODE)])
        journal.close()
        backup.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.3, backup.execute, ("ROLLBACK",))
        timer.start()
        again = Journal(path)
        timer.join()
        assert again.restore() == Restored(3, NODE)
        again.close()


def test_the_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    Journal(tmp_path / "state.sqlite")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_file_that_cannot_be_opened_is_the_system_s_own_word(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").mkdir()
    with pytest.raises(IsADirectoryError):
        Journal(tmp_path / "state.sqlite")
