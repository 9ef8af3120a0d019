"""Consensus on disk: SQLite in WAL mode with full sync, so that what was promised survives a power cut.

SQLite finds damage in the structure of its file, and not in what lies in it: so each row has a checksum of its own.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Effect, PersistEntries, PersistSnapshot, PersistVote
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.messages.consensus import Entry, Snapshot

_SCHEMA = 2
_BEFORE_SUMS = 1
_OPEN_S, _WRITE_S = 30.0, 1.0
"""How long a lock that somebody else holds, a backup say, is waited for: at the start, and in each write. A write that has waited
for so long is tried again like one to a full disk, and the node promises nothing meanwhile."""
IDENTITY = "identity"
"""The fact that a home has once its node has founded or joined a mesh."""
_TABLES = """
CREATE TABLE IF NOT EXISTS vote (id INTEGER PRIMARY KEY CHECK (id = 0), term INTEGER NOT NULL, voted_for TEXT, sum INTEGER);
CREATE TABLE IF NOT EXISTS entry (place INTEGER PRIMARY KEY, body BLOB NOT NULL, sum INTEGER);
CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY CHECK (id = 0), place INTEGER NOT NULL, term INTEGER NOT NULL,
                                     voters TEXT NOT NULL, state BLOB NOT NULL, sum INTEGER);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL, sum INTEGER);
"""
_SUMMED = {
    "vote": "term, voted_for",
    "entry": "place, body",
    "snapshot": "place, term, voters, state",
    "fact": "name, value",
}
"""The columns of each table that its sum is of, in this order."""


class JournalError(Exception):
    """The journal cannot be read or written. The text names the file and says what to do."""


class UnwritableError(JournalError):
    """The disk takes no writes now: it is full, or fails. Nothing was written, and trying again may help. ``cause`` says
    what it was."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path} cannot be used now: {cause}; free some space there, or end what holds it")
        self.cause = cause


_PASSING = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_CANTOPEN,
    }
)
"""Primary result codes of SQLite. After an error it writes all pages of a transaction anew, so trying again is sound even
where a failed sync has left pages that the kernel takes to be clean."""


def _is_passing(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _PASSING


Write = PersistVote | PersistEntries | PersistSnapshot


class Journal:
    """One file. Only one thread may use it at a time."""

    def __init__(self, path: Path) -> None:
        """Raises ``JournalError`` for a file that is damaged, ``UnwritableError`` for one that cannot be had now, ``OSError`` for
        one that cannot be opened at all."""
        self._path = path
        os.close(
            os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        )  # the system's own word on what may be wrong, and private
        self._db = sqlite3.connect(path, _OPEN_S, isolation_level=None, check_same_thread=False)
        try:
            with self._reading():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (wrong,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if wrong != "ok":
            raise self._damaged(wrong)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, _BEFORE_SUMS, _SCHEMA}:
            raise JournalError(
                f"{self._path} is of schema {version}, this dmi-node knows {_SCHEMA}; install the newer one"
            )
        if version == _BEFORE_SUMS:
            self._add_sums()
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._db.execute(f"PRAGMA busy_timeout = {round(_WRITE_S * 1000)}")

    def _add_sums(self) -> None:
        """What an earlier version has written."""
        self._db.execute("BEGIN IMMEDIATE")
        for table, columns in _SUMMED.items():
            self._db.execute(f"ALTER TABLE {table} ADD COLUMN sum INTEGER")
            for row in self._db.execute(f"SELECT rowid, {columns} FROM {table}").fetchall():  # noqa: S608 (our own names)
                self._db.execute(f"UPDATE {table} SET sum = ? WHERE rowid = ?", (_sum(*row[1:]), row[0]))  # noqa: S608
        self._db.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What goes wrong with the file in here is said in one line."""
        try:
            yield
        except sqlite3.Error as error:
            if _is_passing(error):
                raise UnwritableError(self._path, str(error)) from error
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            f"{self._path} is damaged ({what.splitlines()[-1]}): `dmi-node expel` this node elsewhere, move its home away "
            "and join again with a new invitation"
        )

    def _rows(self, table: str, rest: str = "") -> list[tuple[Any, ...]]:
        """Every row of a table, without its sum, which is right."""
        with self._reading():
            rows = self._db.execute(f"SELECT {_SUMMED[table]}, sum FROM {table} {rest}").fetchall()  # noqa: S608
        for *values, found in rows:
            if found != _sum(*values):
                raise self._damaged(f"the checksum of a row of {table} is wrong")
        return [tuple(row[:-1]) for row in rows]

    def restore(self) -> Restored:
        """What was written last. Raises ``JournalError`` where anything of it is damaged."""
        term, voted_for = next(iter(self._rows("vote")), (0, None))
        try:
            entries = tuple(decode_struct(body, Entry) for _, body in self._rows("entry", "ORDER BY place"))
        except RemoteProtocolError as error:
            raise self._damaged(str(error)) from error
        stored = next(iter(self._rows("snapshot")), None)
        snapshot = None
        if stored is not None:
            place, snapshot_term, voters, state = stored
            snapshot = Snapshot(place, snapshot_term, tuple(voters.split()), state)
        return Restored(term, voted_for, snapshot, entries)

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
                self._db.execute(
                    "INSERT OR REPLACE INTO vote VALUES (0, ?, ?, ?)", (term, voted_for, _sum(term, voted_for))
                )
            case PersistEntries(first, entries):
                self._db.execute("DELETE FROM entry WHERE place >= ?", (first,))
                bodies = ((entry.index, encode_struct(entry)) for entry in entries)
                self._db.executemany(
                    "INSERT INTO entry VALUES (?, ?, ?)", ((index, body, _sum(index, body)) for index, body in bodies)
                )
            case PersistSnapshot(snapshot, keep_log):
                row = (snapshot.index, snapshot.term, " ".join(snapshot.voters), snapshot.state)
                self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (0, ?, ?, ?, ?, ?)", (*row, _sum(*row)))
                if keep_log:
                    self._db.execute("DELETE FROM entry WHERE place <= ?", (snapshot.index,))
                else:
                    self._db.execute("DELETE FROM entry")

    def fact(self, name: str) -> bytes | None:
        """Something that this node keeps for itself. Raises ``JournalError``."""
        return next((bytes(value) for known, value in self._rows("fact") if known == name), None)

    def keep(self, name: str, value: bytes) -> None:
        """Remember a fact. Raises ``UnwritableError``, ``JournalError``."""
        try:
            self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?, ?)", (name, value, _sum(name, value)))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def settle(self) -> None:
        """What was written so far stands in the file itself: it is not gone with the log beside it, which a copy may leave out.
        Raises ``UnwritableError``, ``JournalError``."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def damaged(self, name: str, error: Exception) -> JournalError:
        """The fact ``name`` is not what it should be."""
        return self._damaged(f"its {name} cannot be read: {error}")

    def next_boot(self) -> int:
        """1 at the first start of this node, 2 at the second. No clock tells so well what comes after what."""
        boot_count = int(self.fact("boot_count") or b"0") + 1
        self.keep("boot_count", b"%d" % boot_count)
        return boot_count

    def close(self) -> None:
        """No more writes."""
        self._db.close()


def _sum(*values: object) -> int:
    """Of a row: CRC-32 over its values, each with its length."""
    total = 0
    for value in values:
        data = value if isinstance(value, bytes) else b"" if value is None else str(value).encode()
        total = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), total))
    return total


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
