"""Consensus on disk: SQLite in WAL mode with full sync, so that what was promised survives a power cut."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Effect, PersistEntries, PersistSnapshot, PersistVote
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.messages.consensus import Entry, Snapshot

_SCHEMA = 1
IDENTITY = "identity"
"""The fact that a home has once its node has founded or joined a mesh."""
_TABLES = """
CREATE TABLE IF NOT EXISTS vote (id INTEGER PRIMARY KEY CHECK (id = 0), term INTEGER NOT NULL, voted_for TEXT);
CREATE TABLE IF NOT EXISTS entry (place INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY CHECK (id = 0), place INTEGER NOT NULL, term INTEGER NOT NULL,
                                     voters TEXT NOT NULL, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


class JournalError(Exception):
    """The journal cannot be read or written. The text names the file and says what to do."""


class UnwritableError(JournalError):
    """The disk takes no writes now: it is full, or fails. Nothing was written, and trying again may help. ``cause`` says
    what it was."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path} cannot be written: {cause}; free some space there")
        self.cause = cause


_PASSING = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
"""Primary result codes of SQLite. After an error it writes all pages of a transaction anew, so trying again is sound even
where a failed sync has left pages that the kernel takes to be clean."""


def _is_passing(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _PASSING


Write = PersistVote | PersistEntries | PersistSnapshot


class Journal:
    """One file. Only one thread may use it at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in {0, _SCHEMA}:
                raise JournalError(
                    f"{path} is of schema {version}, this dmi-node knows {_SCHEMA}; install the newer one"
                )
            self._db.executescript(_TABLES)
            self._db.execute(f"PRAGMA user_version = {_SCHEMA}")
        except sqlite3.Error as error:
            if _is_passing(error):
                raise UnwritableError(path, str(error)) from error
            raise JournalError(f"{path} cannot be used: {error}; move the home away and join again") from error

    def restore(self) -> Restored:
        """What was written last."""
        try:
            vote = self._db.execute("SELECT term, voted_for FROM vote").fetchone() or (0, None)
            rows = self._db.execute("SELECT body FROM entry ORDER BY place").fetchall()
            entries = tuple(decode_struct(row[0], Entry) for row in rows)
            stored = self._db.execute("SELECT place, term, voters, state FROM snapshot").fetchone()
        except (sqlite3.Error, RemoteProtocolError) as error:
            raise JournalError(f"{self._path} is damaged: {error}; move the home away and join again") from error
        snapshot = None
        if stored is not None:
            snapshot = Snapshot(stored[0], stored[1], tuple(stored[2].split()), stored[3])
        return Restored(vote[0], vote[1], snapshot, entries)

    def write(self, writes: Sequence[Effect]) -> None:
        """Make all of ``writes`` durable, in order, or none of them. Raises ``UnwritableError``, ``JournalError``."""
        try:
            self._db.execute("BEGIN")
            for write in writes:
                self._write(write)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> JournalError:
        """Nothing of a transaction that was not committed is left."""
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        if _is_passing(error):
            return UnwritableError(self._path, str(error))
        return JournalError(f"{self._path} cannot be written: {error}")

    def _write(self, write: Effect) -> None:
        match write:
            case PersistVote(term, voted_for):
                self._db.execute("INSERT OR REPLACE INTO vote VALUES (0, ?, ?)", (term, voted_for))
            case PersistEntries(first, entries):
                self._db.execute("DELETE FROM entry WHERE place >= ?", (first,))
                self._db.executemany("INSERT INTO entry VALUES (?, ?)", ((e.index, encode_struct(e)) for e in entries))
            case PersistSnapshot(snapshot, keep_log):
                self._db.execute(
                    "INSERT OR REPLACE INTO snapshot VALUES (0, ?, ?, ?, ?)",
                    (snapshot.index, snapshot.term, " ".join(snapshot.voters), snapshot.state),
                )
                if keep_log:
                    self._db.execute("DELETE FROM entry WHERE place <= ?", (snapshot.index,))
                else:
                    self._db.execute("DELETE FROM entry")

    def fact(self, name: str) -> bytes | None:
        """Something that this node keeps for itself."""
        row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep(self, name: str, value: bytes) -> None:
        """Remember a fact. Raises ``UnwritableError``, ``JournalError``."""
        try:
            self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def next_boot(self) -> int:
        """1 at the first start of this node, 2 at the second. No clock tells so well what comes after what."""
        boot_count = int(self.fact("boot_count") or b"0") + 1
        self.keep("boot_count", b"%d" % boot_count)
        return boot_count

    def close(self) -> None:
        """No more writes."""
        self._db.close()


def has_fact(path: Path, name: str) -> bool:
    """Whether the node whose journal is at ``path`` keeps such a fact; asked from outside, while it may run.

    Raises ``JournalError``.
    """
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'fact'").fetchone() is None:
                return False
            return db.execute("SELECT 1 FROM fact WHERE name = ?", (name,)).fetchone() is not None
    except sqlite3.Error as error:
        raise JournalError(f"{path} cannot be read: {error}") from error
