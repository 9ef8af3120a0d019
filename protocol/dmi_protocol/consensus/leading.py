"""A leader's view of the others: what each one has, and what to send it next (3.5, 5.3, 6.2)."""

from collections.abc import Iterable

from dmi_protocol import limits
from dmi_protocol.consensus.log import Log
from dmi_protocol.consensus.progress import Progress
from dmi_protocol.consensus.settings import RaftSettings
from dmi_protocol.effects import Send
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.consensus import Append, Appended, Entry, Install, Installed, TimeoutNow


class Leadership:
    """What a leader keeps while it leads one term. It sends; ``Raft`` decides what is committed."""

    def __init__(self, me: NodeId, term: int, log: Log, settings: RaftSettings, now: Instant) -> None:
        self._me = me
        self._term = term
        self._log = log
        self._settings = settings
        self._others: dict[NodeId, Progress] = {}
        self.abreast: set[NodeId] = set()
        """Who has had nearly all that was committed: a newcomer must, before its vote is needed (4.2.1)."""
        self.voters: frozenset[NodeId] = frozenset()
        self.since = now
        self._quorum_at = Instant(0)
        """Since when a quorum has spoken to us at least: it never gets older while the voters are the same."""
        self._successor: tuple[NodeId, Instant] | None = None

    def follow(self, now: Instant, voters: frozenset[NodeId], learners: Iterable[NodeId]) -> None:
        """Replicate to these from now on, and to nobody else."""
        self.voters, self._quorum_at = voters, Instant(0)
        wanted = (voters | frozenset(learners)) - {self._me}
        for gone in self._others.keys() - wanted:
            del self._others[gone]
            self.abreast.discard(gone)
        for new in sorted(wanted - self._others.keys()):  # in one order, so that equal events give equal effects
            self._others[new] = Progress(now, self._log.last + 1)
        for node, other in self._others.items():
            is_voter = node in voters
            other.beats_every(self._settings.heartbeat_ms if is_voter else self._settings.learner_heartbeat_ms)

    def matched(self) -> dict[NodeId, int]:
        """How much of our log everybody has; we have all of it."""
        return {self._me: self._log.last} | {node: other.matched for node, other in self._others.items()}

    def heard(self, now: Instant) -> frozenset[NodeId]:
        """Who spoke to us within an election timeout; we are among them."""
        since = now - self._settings.election_ms
        return frozenset({self._me} | {node for node, other in self._others.items() if other.heard_at > since})

    def has_quorum(self, now: Instant) -> bool:
        """Check-quorum (6.2): may we still lead?"""
        since = now - self._settings.election_ms
        if self._quorum_at <= since:
            self._quorum_at = self.contact(now) if self.voters else Instant(since)
        return self._quorum_at > since

    def contact(self, now: Instant) -> Instant:
        """The latest moment since which a quorum has spoken to us."""
        times = sorted([now if voter == self._me else self._others[voter].heard_at for voter in self.voters])
        return times[(len(times) - 1) // 2] if times else now

    def deadline(self) -> Instant | None:
        """When the next heartbeat is due, or the quorum must be looked at."""
        return min([other.beat_due for other in self._others.values()], default=None)

    def hurry(self, node: NodeId) -> None:
        """Its connection has just come up: its heartbeat is due at once."""
        if node in self._others:
            self._others[node].beat_due = after(self._others[node].beat_due, -self._settings.learner_heartbeat_ms)

    def beat(self, now: Instant, commit: int) -> list[Send]:
        """Heartbeats that are due; they carry what is missing."""
        sends: list[Send] = []
        for node, other in self._others.items():
            if now >= other.beat_due:
                other.doubt()
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
        other.beat_due = after(now, other.beat_ms) if always else other.beat_due
        previous = other.next_index - 1
        previous_term = self._log.term_at(previous)
        if previous_term is None:
            return [Send(node, self._piece(0, 0))] if always else []
        entries = self._batch(other)
        if not entries and not always:
            return []
        if other.is_streaming:
            other.next_index += len(entries)
        other.told = min(commit, previous + len(entries))
        return [Send(node, Append(self._term, previous, previous_term, entries, commit))]

    def _batch(self, other: Progress) -> tuple[Entry, ...]:
        """What may leave now: little while its log is in doubt, and never more on trust than the window."""
        settings = self._settings
        last = min(self._log.last, other.next_index - 1 + settings.entries_per_message)
        if not other.is_streaming:
            return self._log.batch(other.next_index, last, settings.probe_bytes, first_any_size=False)
        last = min(last, other.matched + settings.window_entries)
        return self._log.batch(other.next_index, last, settings.batch_bytes, first_any_size=True)

    def _piece(self, offset: int, most_bytes: int) -> Install:
        """A piece of the snapshot. One without bytes is a heartbeat, and asks how much the follower has."""
        snapshot = self._log.snapshot
        assert snapshot is not None
        data = snapshot.state[offset : offset + most_bytes]
        total = len(snapshot.state)
        return Install(self._term, snapshot.index, snapshot.term, snapshot.voters, offset, total, data)

    def appended(self, now: Instant, node: NodeId, answer: Appended, commit: int) -> list[Send]:
        """A follower says how much of our log it has, or where to try again."""
        other = self._others.get(node)
        if other is None:
            return []
        other.heard_at = now
        if answer.matched:
            other.confirm(min(answer.index, self._log.last))
            if other.matched + self._settings.entries_per_message >= commit:
                self.abreast.add(node)
            return self._send(now, node, commit, always=other.told < min(commit, other.matched))
        return self._send(now, node, commit, always=True) if other.back_off(answer.index) else []

    def installed(self, now: Instant, node: NodeId, answer: Installed, commit: int) -> list[Send]:
        """A follower has so much of our snapshot."""
        other = self._others.get(node)
        snapshot = self._log.snapshot
        if other is None:
            return []
        other.heard_at = now
        if snapshot is None or answer.index != snapshot.index:
            return []
        if answer.offset >= len(snapshot.state):
            other.confirm(snapshot.index)
            return self._send(now, node, commit, always=True)
        if self._log.term_at(other.next_index - 1) is not None or not other.wants_piece(now, max(0, answer.offset)):
            return []
        return [Send(node, self._piece(max(0, answer.offset), limits.CHUNK_BYTES))]

    # Handing over (3.10)

    def transfer(self, now: Instant, to: NodeId) -> list[Send]:
        """Make ``to`` the successor, if it has all of our log within an election timeout."""
        self._successor = (to, after(now, self._settings.election_ms))
        return self.finish_transfer(now)

    def finish_transfer(self, now: Instant) -> list[Send]:
        """Tell the successor to campaign, once it has everything; forget it when that takes too long."""
        if self._successor is None:
            return []
        to, until = self._successor
        other = self._others.get(to)
        if now >= until or other is None:
            self._successor = None
            return []
        if other.matched < self._log.last:
            return []
        self._successor = None
        return [Send(to, TimeoutNow(self._term))]

    def most_complete(self) -> NodeId | None:
        """The other voter that has most of our log."""
        candidates = [node for node in self._others if node in self.voters]
        return max(candidates, key=lambda node: (self._others[node].matched, node), default=None)
