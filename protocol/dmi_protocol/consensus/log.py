"""The log in memory: a snapshot's place, and the entries after it."""

from collections.abc import Sequence

from dmi_protocol.codec import pack
from dmi_protocol.identity import NodeId
from dmi_protocol.messages.consensus import Entry, Snapshot, Voters


class Log:
    """Entries from ``first`` to ``last``; those before ``first`` are in the snapshot."""

    def __init__(self, snapshot: Snapshot | None, entries: Sequence[Entry]) -> None:
        self._put(snapshot, [e for e in entries if snapshot is None or e.index > snapshot.index])

    def _put(self, snapshot: Snapshot | None, entries: list[Entry]) -> None:
        self.snapshot, self._entries = snapshot, entries
        self.start = 0 if snapshot is None else snapshot.index
        """The index that the snapshot stands for, 0 without one."""
        self.last = self.start + len(entries)
        """The index of the last entry."""
        self._voters = _changes(entries)

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self.term_at(self.last) or 0

    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``; None when it is not known (any more, or yet)."""
        if index == self.start:
            return 0 if self.snapshot is None else self.snapshot.term
        if self.start < index <= self.last:
            return self._entries[index - self.start - 1].term
        return None

    def between(self, first: int, last: int) -> tuple[Entry, ...]:
        """The entries from ``first`` to ``last``, both included; all must be here. None when ``last`` is before."""
        return tuple(self._entries[first - self.start - 1 : max(first - 1, last) - self.start])

    def batch(self, first: int, last: int, most_bytes: int, *, first_any_size: bool) -> tuple[Entry, ...]:
        """Entries from ``first`` to ``last`` at most that together weigh at most ``most_bytes`` when they are packed.

        ``first_any_size`` lets a first one that weighs more go alone.
        """
        if last == first and first_any_size:
            return self.between(first, last)
        taken = 0
        for entry in self.between(first, last):
            most_bytes -= len(pack(entry))
            if most_bytes < 0 and not (first_any_size and taken == 0):
                break
            taken += 1
        return self.between(first, first + taken - 1)

    def append(self, entries: Sequence[Entry]) -> None:
        """Take entries in, and drop whatever stood at their places and after."""
        first = entries[0].index
        del self._entries[first - self.start - 1 :]
        self._entries.extend(entries)
        self.last = self.start + len(self._entries)
        self._voters = [change for change in self._voters if change[0] < first] + _changes(entries)

    def is_covered_by(self, last_index: int, last_term: int) -> bool:
        """Is a log that ends in (``last_term``, ``last_index``) at least as complete as this one (3.6.1)?"""
        return (last_term, last_index) >= (self.last_term, self.last)

    def compact(self, snapshot: Snapshot) -> None:
        """The entries up to the snapshot's index are not needed any more."""
        self._put(snapshot, [entry for entry in self._entries if entry.index > snapshot.index])

    def replace(self, snapshot: Snapshot) -> None:
        """The whole log is obsolete."""
        self._put(snapshot, [])

    def voters_at(self, index: int) -> frozenset[NodeId]:
        """Who votes when the log ends at ``index``: the last ``Voters`` entry counts as soon as it is there (4.1)."""
        for changed_at, voters in reversed(self._voters):
            if changed_at <= index:
                return voters
        return frozenset() if self.snapshot is None else frozenset(self.snapshot.voters)

    def voters_index(self) -> int:
        """Where the voters in force were set; 0 when it was in the snapshot."""
        return self._voters[-1][0] if self._voters else 0

    def first_of_term(self, index: int) -> int:
        """The first index that has the same term as the entry at ``index``: where a conflict may begin."""
        term = self.term_at(index)
        while index > self.start + 1 and self.term_at(index - 1) == term:
            index -= 1
        return index

    def check(self) -> None:
        """Assert that indexes have no gaps and terms never go back."""
        term = 0 if self.snapshot is None else self.snapshot.term
        for place, entry in enumerate(self._entries):
            assert entry.index == self.start + 1 + place, f"a gap before {entry.index}"
            assert entry.term >= term, f"the term goes back at {entry.index}"
            term = entry.term


def _changes(entries: Sequence[Entry]) -> list[tuple[int, frozenset[NodeId]]]:
    """Where the voters change, and who votes from there on."""
    return [(entry.index, frozenset(entry.command.voters)) for entry in entries if isinstance(entry.command, Voters)]
