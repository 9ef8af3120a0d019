"""A follower and what a leader sends: is it sound, where do the logs agree, and what of it is new (3.5)?"""

from msgspec import Struct

from dmi_protocol.consensus.log import Log
from dmi_protocol.messages.consensus import Append, ConsensusMessage, Entry, Install, Snapshot

LARGEST = 1 << 62
"""No term and no index comes near; a disk could not keep what is beyond."""


class Placed(Struct, frozen=True):
    """With ``matched`` the logs agree up to ``index`` once ``kept`` is appended; without, try again from ``index``."""

    matched: bool
    index: int
    kept: tuple[Entry, ...] = ()


def is_sound(message: ConsensusMessage) -> bool:
    """Could a correct node have said this?"""
    if not 0 <= message.term < LARGEST:
        return False
    if isinstance(message, Install):
        is_within = 0 <= message.offset <= message.total and message.offset + len(message.data) <= message.total
        return is_within and 0 < message.index < LARGEST and 0 <= message.last_term <= message.term
    if not isinstance(message, Append):
        return True
    if not (0 <= message.previous_index < LARGEST and message.previous_term >= 0):
        return False
    index, term = message.previous_index, message.previous_term
    for entry in message.entries:
        if entry.index != index + 1 or entry.term < term:
            return False
        index, term = entry.index, entry.term
    return term <= message.term


def place(log: Log, commit: int, message: Append) -> Placed | None:
    """Where the entries of ``message`` belong. None when they contradict what is committed here: nobody may say so."""
    previous_index, previous_term = message.previous_index, message.previous_term
    entries = message.entries
    if previous_index < commit:  # what is committed is the leader's too (leader completeness, 3.6.3)
        entries = tuple(entry for entry in entries if entry.index > commit)
        previous_index, previous_term = commit, log.term_at(commit) or 0
    if log.term_at(previous_index) != previous_term:
        known = min(previous_index, log.last)
        retry = log.first_of_term(known) if known == previous_index else known + 1
        return Placed(matched=False, index=max(retry, commit + 1))
    new = next((entry.index for entry in entries if log.term_at(entry.index) != entry.term), None)
    kept = () if new is None else tuple(entry for entry in entries if entry.index >= new)
    return Placed(matched=True, index=previous_index + len(entries), kept=kept)


class Pieces:
    """A snapshot that arrives in pieces. It holds no more than came, whatever a piece claims."""

    def __init__(self) -> None:
        self._of: tuple[int, int] | None = None
        self._data = bytearray()

    def add(self, piece: Install) -> int:
        """Take a piece in; gives how many bytes are here. Another term or index starts over."""
        if self._of != (piece.term, piece.index):
            self._of, self._data = (piece.term, piece.index), bytearray()
        if piece.offset == len(self._data):
            self._data += piece.data
        return len(self._data)

    def whole(self, last: Install) -> Snapshot | None:
        """The snapshot, once all of it is here; it is handed out once."""
        if len(self._data) < last.total:
            return None
        snapshot = Snapshot(last.index, last.last_term, last.voters, bytes(self._data))
        self._of, self._data = None, bytearray()
        return snapshot
