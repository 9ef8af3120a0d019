"""A leader's view of the others: what each one has, and what to send it next (3.5, 5.3, 6.2)."""

from collections.abc import Iterable

from dmi_protocol import limits
from dmi_protocol.consensus.log import Log
from dmi_protocol.consensus.quorum import is_quorum
from dmi_protocol.consensus.settings import RaftSettings
from dmi_protocol.effects import Send
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.messages.consensus import Append, Appended, Entry, Install, Installed


class _Progress:
    """One follower as the leader knows it."""

    def __init__(self, now: Instant, next_index: int) -> None:
        self.matched = 0
        self.next_index = next_index
        self.is_streaming = False
        """Its log is known to match: entries may follow before the last ones are acknowledged."""
        self.heard_at = now
        self.beat_at = now
        self.offset = 0
        """How much of the snapshot it has."""


class Leadership:
    """What a leader keeps while it leads one term. It sends; ``Raft`` decides what is committed."""

    def __init__(self, me: NodeId, term: int, log: Log, settings: RaftSettings, now: Instant) -> None:
        self._me = me
        self._term = term
        self._log = log
        self._settings = settings
        self._others: dict[NodeId, _Progress] = {}
        self.voters: frozenset[NodeId] = frozenset()
        self.since = now
        self.transferring_to: NodeId | None = None

    def follow(self, now: Instant, voters: frozenset[NodeId], learners: Iterable[NodeId]) -> None:
        """Replicate to these from now on, and to nobody else."""
        self.voters = voters
        wanted = (voters | frozenset(learners)) - {self._me}
        for gone in self._others.keys() - wanted:
            del self._others[gone]
        for new in sorted(wanted - self._others.keys()):  # in one order, so that equal events give equal effects
            self._others[new] = _Progress(now, self._log.last + 1)

    def matched(self) -> dict[NodeId, int]:
        """How much of our log everybody has; we have all of it."""
        return {self._me: self._log.last} | {node: other.matched for node, other in self._others.items()}

    def heard(self, now: Instant) -> frozenset[NodeId]:
        """Who spoke to us within an election timeout; we are among them."""
        since = now - self._settings.election_ms
        return frozenset({self._me} | {node for node, other in self._others.items() if other.heard_at > since})

    def has_quorum(self, now: Instant) -> bool:
        """Check-quorum (6.2): may we still lead?"""
        return is_quorum(self.voters, self.heard(now))

    def deadline(self) -> Instant | None:
        """When the next heartbeat is due, or the quorum must be looked at."""
        beats = [self._beat_due(node, other) for node, other in self._others.items()]
        return earliest(*beats)

    def _beat_due(self, node: NodeId, other: _Progress) -> Instant:
        is_voter = node in self.voters
        return after(other.beat_at, self._settings.heartbeat_ms if is_voter else self._settings.learner_heartbeat_ms)

    def beat(self, now: Instant, commit: int) -> list[Send]:
        """Heartbeats that are due; they carry what is missing."""
        sends: list[Send] = []
        for node, other in self._others.items():
            if now >= self._beat_due(node, other):
                other.is_streaming = other.is_streaming and other.matched >= other.next_index - 1
                other.next_index = max(
                    1, other.next_index if other.is_streaming else min(other.next_index, self._log.last + 1)
                )
                sends += self._send(now, node, commit, always=True)
        return sends

    def replicate(self, now: Instant, commit: int) -> list[Send]:
        """Send new entries, and the news of what is committed, to everybody whose log is known to match."""
        return [
            send for node, other in self._others.items() if other.is_streaming for send in self._send(now, node, commit)
        ]

    def announce(self, now: Instant, commit: int) -> list[Send]:
        """Tell everybody at once who leads."""
        return [send for node in self._others for send in self._send(now, node, commit, always=True)]

    def tell_commit(self, now: Instant, commit: int) -> list[Send]:
        """Tell everybody at once what is committed now."""
        return [
            send
            for node, other in self._others.items()
            if other.is_streaming
            for send in self._send(now, node, commit, always=True)
        ]

    def _send(self, now: Instant, node: NodeId, commit: int, *, always: bool = False) -> list[Send]:
        other = self._others[node]
        other.beat_at = now if always else other.beat_at
        previous = other.next_index - 1
        previous_term = self._log.term_at(previous)
        if previous_term is None:
            return [Send(node, self._piece(other))]
        entries: tuple[Entry, ...] = ()
        if other.is_streaming or always:
            last = min(self._log.last, previous + self._settings.entries_per_message)
            entries = self._log.between(other.next_index, last)
        if not entries and not always:
            return []
        if other.is_streaming:
            other.next_index += len(entries)
        return [Send(node, Append(self._term, previous, previous_term, entries, commit))]

    def _piece(self, other: _Progress) -> Install:
        snapshot = self._log.snapshot
        assert snapshot is not None
        data = snapshot.state[other.offset : other.offset + limits.CHUNK_BYTES]
        return Install(
            self._term, snapshot.index, snapshot.term, snapshot.voters, other.offset, len(snapshot.state), data
        )  # fmt: skip

    def appended(self, now: Instant, node: NodeId, answer: Appended, commit: int) -> list[Send]:
        """A follower says how much of our log it has, or where to try again."""
        other = self._others.get(node)
        if other is None:
            return []
        other.heard_at = now
        if answer.matched:
            other.matched = max(other.matched, min(answer.index, self._log.last))
            was_streaming, other.is_streaming = other.is_streaming, True
            other.next_index = max(other.next_index if was_streaming else 0, other.matched + 1)
            return self._send(now, node, commit)
        if answer.index <= other.matched:
            return []
        return self._retry(now, node, other, max(1, answer.index), commit)

    def _retry(self, now: Instant, node: NodeId, other: _Progress, index: int, commit: int) -> list[Send]:
        if not other.is_streaming and index >= other.next_index:
            return []
        other.is_streaming = False
        other.next_index = min(index, self._log.last + 1)
        other.offset = 0
        return self._send(now, node, commit, always=True)

    def installed(self, now: Instant, node: NodeId, answer: Installed, commit: int) -> list[Send]:
        """A follower has so much of our snapshot."""
        other = self._others.get(node)
        snapshot = self._log.snapshot
        if other is None:
            return []
        other.heard_at = now
        if snapshot is None or answer.index != snapshot.index:
            other.offset = 0
            return []
        if answer.offset >= len(snapshot.state):
            other.matched = max(other.matched, snapshot.index)
            other.next_index, other.is_streaming, other.offset = other.matched + 1, True, 0
            return self._send(now, node, commit, always=True)
        if self._log.term_at(other.next_index - 1) is not None:
            return []
        other.offset = answer.offset
        return [Send(node, self._piece(other))]

    def most_complete(self) -> NodeId | None:
        """The other voter that has most of our log."""
        candidates = [node for node in self._others if node in self.voters]
        return max(candidates, key=lambda node: (self._others[node].matched, node), default=None)

    def has_everything(self, node: NodeId) -> bool:
        """Has this follower all of our log?"""
        other = self._others.get(node)
        return other is not None and other.matched == self._log.last
