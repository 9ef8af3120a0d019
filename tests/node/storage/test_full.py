"""A disk that is full: nothing is half written, the error says that it may pass, and then it has passed."""

import sqlite3
from pathlib import Path

import pytest

from dmi_node.storage.journal import Journal, JournalError, UnwritableError
from dmi_protocol.effects import PersistSnapshot, PersistVote
from dmi_protocol.messages.consensus import Snapshot

LARGE = PersistSnapshot(Snapshot(1, 1, (), b"s" * 1_000_000), keep_log=False)


def fill(journal: Journal) -> None:
    """SQLite takes the file for full from here on."""
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_takes_all_of_a_write_or_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state.sqlite")
    journal.write([PersistVote(3, None)])
    fill(journal)
    for _ in range(2):
        with pytest.raises(UnwritableError, match="free some space") as caught:
            journal.write([PersistVote(4, None), LARGE])
        assert caught.value.cause == "database or disk is full"
        assert (journal.restore().term, journal.restore().snapshot) == (3, None)
    with pytest.raises(UnwritableError):
        journal.keep("members", b"m" * 1_000_000)
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.write([PersistVote(4, None), LARGE])
    assert (journal.restore().term, journal.restore().snapshot) == (4, LARGE.snapshot)
    journal.close()


class Failing:
    """A connection whose next statement fails."""

    in_transaction = False

    def __init__(self, code: int) -> None:
        self._error = sqlite3.OperationalError("it fails")
        self._error.sqlite_errorcode = code

    def execute(self, *_: object) -> None:
        raise self._error

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        (sqlite3.SQLITE_IOERR_WRITE, True),
        (sqlite3.SQLITE_IOERR_FSYNC, True),
        (sqlite3.SQLITE_READONLY, True),
        (sqlite3.SQLITE_CORRUPT, False),
    ],
)
def test_what_may_pass_is_told_from_what_does_not(tmp_path: Path, code: int, passes: bool) -> None:
    journal = Journal(tmp_path / "state.sqlite")
    journal.close()
    journal._db = Failing(code)  # type: ignore[assignment]
    with pytest.raises(JournalError) as caught:
        journal.write([PersistVote(1, None)])
    assert isinstance(caught.value, UnwritableError) == passes
