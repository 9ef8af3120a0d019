"""Pieces that wait for a replica, in the order in which they came, and by the group that may share a batch."""

from collections import deque
from collections.abc import Hashable

from dmi_protocol.instant import Instant
from dmi_protocol.serving.events import Piece


class Waiting:
    """A piece in the queue since then. ``is_taken`` is true for one that is not any more."""

    __slots__ = ("group", "is_taken", "piece", "since")

    def __init__(self, piece: Piece, group: Hashable, since: Instant) -> None:
        self.piece = piece
        self.group = group
        self.since = since
        self.is_taken = False


class PieceQueue:
    """Every operation costs the same, however many wait: what is taken out of the middle is passed over later."""

    def __init__(self) -> None:
        self._all: deque[Waiting] = deque()
        self._groups: dict[Hashable, deque[Waiting]] = {}
        self._rows: dict[Hashable, int] = {}
        """By group, for those that have some."""

    def add(self, waiting: Waiting, *, first: bool = False) -> None:
        """At the end; or before all others, when it has waited already."""
        mine = self._groups.setdefault(waiting.group, deque())
        for line in (self._all, mine):
            if first:
                line.appendleft(waiting)
            else:
                line.append(waiting)
        self._rows[waiting.group] = self._rows.get(waiting.group, 0) + waiting.piece.weight

    def take(self, waiting: Waiting) -> None:
        """Out of it."""
        waiting.is_taken = True
        left = self._rows[waiting.group] - waiting.piece.weight
        if left:
            self._rows[waiting.group] = left
        else:
            del self._rows[waiting.group], self._groups[waiting.group]

    def head(self) -> Waiting | None:
        """Who waits longest."""
        while self._all and self._all[0].is_taken:
            self._all.popleft()
        return self._all[0] if self._all else None

    def rows(self, group: Hashable) -> int:
        """How many wait of a group."""
        return self._rows.get(group, 0)

    def batch(self, group: Hashable, most: int) -> list[Piece]:
        """Takes those of a group that wait longest, as many as ``most`` rows."""
        mine, chosen, rows = self._groups[group], list[Piece](), 0
        while mine:
            waiting = mine[0]
            if not waiting.is_taken:
                if chosen and rows + waiting.piece.weight > most:
                    break
                chosen.append(waiting.piece)
                rows += waiting.piece.weight
                self.take(waiting)
            mine.popleft()
        return chosen

    def check(self) -> None:
        """Assert the invariants."""
        for group, mine in self._groups.items():
            rows = sum(each.piece.weight for each in mine if not each.is_taken)
            assert rows == self._rows[group] > 0, (group, rows)
        assert sum(self._rows.values()) == sum(each.piece.weight for each in self._all if not each.is_taken)
