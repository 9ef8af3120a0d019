"""A disk of one node: it holds what was written in order, and a crash in the middle of a write tears it."""

from collections.abc import Sequence
from random import Random

from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Effect, PersistEntries, PersistSnapshot, PersistVote
from dmi_protocol.identity import NodeId
from dmi_protocol.messages.consensus import Entry, Snapshot, Voters

WRITES = (PersistVote, PersistEntries, PersistSnapshot)


class Disk:
    """What is durable. ``history`` also keeps the entries that were compacted away, for the checkers."""

    def __init__(self, restored: Restored) -> None:
        self.term, self.voted_for = restored.term, restored.voted_for
        self.snapshot: Snapshot | None = restored.snapshot
        self.entries: list[Entry] = list(restored.entries)
        self.history: dict[int, Entry] = {entry.index: entry for entry in restored.entries}
        self.truncations = 0
        self.snapshots = 0

    @property
    def last(self) -> tuple[int, int]:
        """Term and index of the last entry, as votes compare them."""
        if self.entries:
            return self.entries[-1].term, self.entries[-1].index
        return (0, 0) if self.snapshot is None else (self.snapshot.term, self.snapshot.index)

    @property
    def start(self) -> int:
        """The index that the snapshot stands for."""
        return 0 if self.snapshot is None else self.snapshot.index

    def has(self, entry: Entry) -> bool:
        """Is this very entry durable here, or covered by the snapshot?"""
        if entry.index <= self.start:
            return True
        found = self.history.get(entry.index)
        return found is not None and found.term == entry.term

    def voters(self) -> frozenset[NodeId]:
        """Who votes, for the node that would start from this disk."""
        for entry in reversed(self.entries):
            if isinstance(entry.command, Voters):
                return frozenset(entry.command.voters)
        return frozenset() if self.snapshot is None else frozenset(self.snapshot.voters)

    def write(self, effect: Effect) -> None:
        """Make one write durable."""
        match effect:
            case PersistVote(term, voted_for):
                self.term, self.voted_for = term, voted_for
            case PersistEntries(first, entries):
                self._append(first, entries)
            case PersistSnapshot(snapshot, keep_log):
                self.snapshots += 1
                self.entries = [entry for entry in self.entries if keep_log and entry.index > snapshot.index]
                self.snapshot = snapshot
                if not keep_log:
                    self.history.clear()

    def _append(self, first: int, entries: Sequence[Entry]) -> None:
        self.truncations += bool(self.entries) and self.entries[-1].index >= first
        while self.entries and self.entries[-1].index >= first:
            del self.history[self.entries.pop().index]
        self.entries += entries
        for entry in entries:
            self.history[entry.index] = entry

    def tear(self, writes: Sequence[Effect], random: Random) -> bool:
        """The power fails during ``writes``: some are durable, one is in part, the rest is lost. Was anything lost?"""
        whole = random.randrange(len(writes) + 1)
        for write in writes[:whole]:
            self.write(write)
        if whole == len(writes):
            return False
        torn = writes[whole]
        if isinstance(torn, PersistEntries):
            self._append(torn.first, torn.entries[: random.randrange(len(torn.entries) + 1)])
        return True

    def restored(self) -> Restored:
        """What a daemon reads when it starts."""
        return Restored(self.term, self.voted_for, self.snapshot, tuple(self.entries))
