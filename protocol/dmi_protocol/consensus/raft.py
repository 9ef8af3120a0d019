"""Raft: one node's part in agreeing on a log.

Every answer that is a promise (a vote, an acknowledged entry) stands after the write that makes it true, so a shell that
keeps the order of effects cannot break it. Learners get the log and do not vote; a node without a log has no voters and
never campaigns.
"""

from collections.abc import Iterable, Set
from random import Random

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command
from dmi_protocol.codec import pack
from dmi_protocol.consensus.following import Pieces, is_sound, place
from dmi_protocol.consensus.leading import Leadership
from dmi_protocol.consensus.log import Log
from dmi_protocol.consensus.output import ApplyEntries, Output, Restore
from dmi_protocol.consensus.quorum import committed_index, is_quorum
from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import PersistEntries, PersistSnapshot, PersistVote, Send
from dmi_protocol.errors import LocalProtocolError
from dmi_protocol.events import Connected, Disconnected, Event, Received, Stopping
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.consensus import (
    Append,
    Appended,
    ConsensusMessage,
    Entry,
    Install,
    Installed,
    Noop,
    PreVote,
    PreVoted,
    Snapshot,
    TimeoutNow,
    Vote,
    Voted,
    Voters,
)


class Raft:
    """Decides for one node; see ``machine.py`` for what the caller must do."""

    def __init__(self, me: NodeId, settings: RaftSettings, random: Random, restored: Restored) -> None:
        settings.check()
        self._me = me
        self._settings = settings
        self._random = random
        self.term = restored.term
        self._voted_for = restored.voted_for
        self.log = Log(restored.snapshot, restored.entries)
        self.commit = self.log.start
        self.voters = self.log.voters_at(self.log.last)
        self._learners: frozenset[NodeId] = frozenset()
        self.leader: NodeId | None = None
        self._heard_at: Instant | None = None
        self._link_broken = False
        self._election_at: Instant | None = None
        self._leadership: Leadership | None = None
        self._asking: type[PreVote | Vote] | None = None
        self._granted: set[NodeId] = set()
        self._pieces = Pieces()

    @property
    def is_leader(self) -> bool:
        """Do we lead the current term?"""
        return self._leadership is not None

    @property
    def is_ready(self) -> bool:
        """Do we lead, and is an entry of our term committed, so that all before it is (6.4)?"""
        return self._leadership is not None and self.log.term_at(self.commit) == self.term

    @property
    def abreast(self) -> Set[NodeId]:
        """A leader: who has had nearly all of its log since it leads, so that the mesh would not wait for its vote."""
        return self._leadership.abreast if self._leadership is not None else frozenset()

    def hears(self, now: Instant) -> frozenset[NodeId]:
        """A leader: who spoke within an election timeout. A follower: itself, and its leader when that is alive."""
        if self._leadership is not None:
            return self._leadership.heard(now)
        return frozenset({self._me} | ({self.leader} if self.leader and self._leader_is_alive(now) else set()))

    def has_quorum(self, now: Instant) -> bool:
        """Can something be agreed on now, as far as we know?"""
        if self._leadership is not None:
            return self._leadership.has_quorum(now)
        return self.leader is not None and self._leader_is_alive(now)

    @property
    def leads_alone(self) -> bool:
        """Are we a quorum by ourselves?"""
        return self.is_leader and self.voters == {self._me}

    def contact(self, now: Instant) -> Instant | None:
        """When we last knew of a quorum that agrees on who leads; None when we never did."""
        if self._leadership is not None:
            return self._leadership.contact(now)
        return self._heard_at

    def _leader_is_alive(self, now: Instant) -> bool:
        return (
            self._heard_at is not None and not self._link_broken and now - self._heard_at < self._settings.election_ms
        )

    def deadline(self) -> Instant | None:
        """See ``Machine.deadline``."""
        if self._leadership is not None:
            return self._leadership.deadline()
        return self._election_at if self._me in self.voters else None

    def step(self, now: Instant, event: Event) -> list[Output]:
        """See ``Machine.step``."""
        if self._election_at is None:
            self._wait(now)
            if self.voters == {self._me}:
                self._election_at = now
        match event:
            case Received(sender, message) if isinstance(message, ConsensusMessage):
                return self._received(now, sender, message) if is_sound(message) else []
            case Connected(peer) if self._leadership is not None:
                self._leadership.hurry(peer)
            case Connected(peer) if peer == self.leader:
                self._link_broken = False
            case Disconnected(peer) if peer == self.leader:
                self._link_broken = True
                self._election_at = after(now, self._random.randint(*self._settings.broken_link_ms))
            case Stopping():
                return self._hand_over(now)
        return self._tick(now)

    def _tick(self, now: Instant) -> list[Output]:
        lead = self._leadership
        if lead is not None:
            if now - lead.since < self._settings.election_ms or lead.has_quorum(now):
                return [*lead.beat(now, self.commit)]
            self._follow(now, None)
            return []
        if self._me in self.voters and self._election_at is not None and now >= self._election_at:
            return self._campaign(now, PreVote)
        return []

    def _wait(self, now: Instant) -> None:
        """Set the next election: soon when the leader's connection is broken, else after a random timeout (3.4)."""
        if self._link_broken:
            self._election_at = after(now, 2 * self._random.randint(*self._settings.broken_link_ms))
        else:
            self._election_at = after(
                now, self._settings.election_ms + self._random.randrange(self._settings.election_ms)
            )

    # Elections

    def _campaign(self, now: Instant, ask: type[PreVote | Vote], *, transfer: bool = False) -> list[Output]:
        self._wait(now)
        self._asking, self._granted = ask, {self._me}
        output: list[Output] = []
        if ask is Vote:
            self._follow(now, None)
            self._asking = Vote
            self.term, self._voted_for = self.term + 1, self._me
            output.append(PersistVote(self.term, self._me))
            message: PreVote | Vote = Vote(self.term, self.log.last, self.log.last_term, transfer)
        else:
            message = PreVote(self.term + 1, self.log.last, self.log.last_term)
        output += [Send(voter, message) for voter in sorted(self.voters - {self._me})]
        return output + self._count(now)

    def _count(self, now: Instant) -> list[Output]:
        if not is_quorum(self.voters, self._granted):
            return []
        if self._asking is PreVote:
            return self._campaign(now, Vote)
        return self._lead(now)

    def _lead(self, now: Instant) -> list[Output]:
        self._asking = None
        self.leader = self._me
        self._link_broken = False
        self._leadership = Leadership(self._me, self.term, self.log, self._settings, now)
        self._leadership.follow(now, self.voters, self._learners)
        output = self._append(now, Noop())
        return [*output, *self._leadership.announce(now, self.commit)]

    def _follow(self, now: Instant, leader: NodeId | None) -> None:
        """Lead nothing, ask for nothing."""
        self._leadership = None
        self._asking = None
        if leader is not None:
            self._heard_at = now
            self._link_broken = False
        self.leader = leader
        self._wait(now)

    def _received(self, now: Instant, sender: NodeId, message: ConsensusMessage) -> list[Output]:
        if isinstance(message, PreVote):
            return [Send(sender, self._pre_vote(now, message))]
        if isinstance(message, PreVoted) and message.granted:
            return self._granted_by(now, sender, PreVote, message.term == self.term + 1)
        if isinstance(message, Vote) and self._must_ignore(now, message):
            return []
        output: list[Output] = []
        if message.term > self.term:
            self.term, self._voted_for = message.term, None
            self._follow(now, None)
            output.append(PersistVote(self.term, None))
        match message:
            case Vote():
                return output + self._vote(now, sender, message)
            case Voted(term, granted):
                return output + self._granted_by(now, sender, Vote, granted and term == self.term)
            case Append() | Install() if message.term < self.term:
                return [Send(sender, Appended(self.term, matched=False, index=self.log.last + 1))]
            case Append():
                return output + self._append_from(now, sender, message)
            case Install():
                return output + self._install_from(now, sender, message)
            case TimeoutNow(term) if term == self.term and self._me in self.voters and self._leadership is None:
                return output + self._campaign(now, Vote, transfer=True)
            case Appended() | Installed() if message.term == self.term and self._leadership is not None:
                return output + self._answered(now, self._leadership, sender, message)
        return output

    def _pre_vote(self, now: Instant, ask: PreVote) -> PreVoted:
        """Granted when we would vote so, and do not hear a leader ourselves (9.6, 6.4.1)."""
        is_free = not self.has_quorum(now)
        granted = is_free and ask.term > self.term and self.log.is_covered_by(ask.last_index, ask.last_term)
        return PreVoted(ask.term if granted else self.term, granted)

    def _must_ignore(self, now: Instant, ask: Vote) -> bool:
        """Who hears a leader takes no part in elections that nobody needs (4.2.3)."""
        return ask.term > self.term and not ask.transfer and self.has_quorum(now)

    def _vote(self, now: Instant, sender: NodeId, ask: Vote) -> list[Output]:
        can = ask.term == self.term and self._voted_for in {None, sender} and self._leadership is None
        if not can or not self.log.is_covered_by(ask.last_index, ask.last_term):
            return [Send(sender, Voted(self.term, granted=False))]
        self._voted_for = sender
        self._wait(now)
        return [PersistVote(self.term, sender), Send(sender, Voted(self.term, granted=True))]

    def _granted_by(self, now: Instant, voter: NodeId, kind: type[PreVote | Vote], granted: bool) -> list[Output]:
        if self._asking is not kind or not granted or voter not in self.voters:
            return []
        self._granted.add(voter)
        return self._count(now)

    # Following

    def _append_from(self, now: Instant, leader: NodeId, message: Append) -> list[Output]:
        placed = place(self.log, self.commit, message)
        if placed is None or self._leadership is not None:
            return []  # a second leader of our term, or a committed entry changed: no promise is made to such a one
        self._follow(now, leader)
        if not placed.matched:
            return [Send(leader, Appended(self.term, matched=False, index=placed.index))]
        output: list[Output] = []
        if placed.kept:
            self.log.append(placed.kept)
            self.voters = self.log.voters_at(self.log.last)
            output.append(PersistEntries(placed.kept[0].index, placed.kept))
        output.append(Send(leader, Appended(self.term, matched=True, index=placed.index)))
        return output + self._commit_to(min(message.commit, placed.index))

    def _install_from(self, now: Instant, leader: NodeId, piece: Install) -> list[Output]:
        if self._leadership is not None:
            return []
        self._follow(now, leader)
        if piece.index <= self.commit:
            return [Send(leader, Installed(self.term, piece.index, piece.total))]
        have = self._pieces.add(piece)
        snapshot = self._pieces.whole(piece)
        answer = Send(leader, Installed(self.term, piece.index, have))
        if snapshot is None:
            return [answer]
        keeps = self.log.term_at(snapshot.index) == snapshot.term
        if keeps:
            self.log.compact(snapshot)
        else:
            self.log.replace(snapshot)
        self.voters = self.log.voters_at(self.log.last)
        self.commit = snapshot.index
        return [PersistSnapshot(snapshot, keeps), answer, Restore(snapshot)]

    def _commit_to(self, index: int) -> list[Output]:
        if index <= self.commit:
            return []
        entries = self.log.between(self.commit + 1, index)
        self.commit = index
        return [ApplyEntries(entries)]

    # Leading

    def _append(self, now: Instant, command: Command | Voters | Noop) -> list[Output]:
        assert self._leadership is not None
        entry = Entry(self.log.last + 1, self.term, command)
        self.log.append((entry,))
        if isinstance(command, Voters):
            self.voters = frozenset(command.voters)
            self._leadership.follow(now, self.voters, self._learners)
        persist = PersistEntries(entry.index, (entry,))
        return [persist, *self._leadership.replicate(now, self.commit), *self._advance(now)]

    def _advance(self, now: Instant) -> list[Output]:
        """Commit what a quorum has, if it is of our own term (3.6.2)."""
        lead = self._leadership
        if lead is None or self.log.last <= self.commit:
            return []
        index = committed_index(self.voters, lead.matched())
        if index <= self.commit or self.log.term_at(index) != self.term:
            return []
        output = self._commit_to(index)
        output += lead.tell_commit(now, self.commit)
        if self._me not in self.voters and self.log.voters_index() <= self.commit:
            heir = lead.most_complete()
            output += [Send(heir, TimeoutNow(self.term))] if heir is not None else []
            self._follow(now, None)  # we have voted ourselves out, and that is committed (4.2.2)
        return output

    def _answered(self, now: Instant, lead: Leadership, sender: NodeId, answer: Appended | Installed) -> list[Output]:
        sends = (
            lead.appended(now, sender, answer, self.commit)
            if isinstance(answer, Appended)
            else lead.installed(now, sender, answer, self.commit)
        )
        return [*sends, *self._advance(now), *lead.finish_transfer(now)]

    def _hand_over(self, now: Instant) -> list[Output]:
        lead = self._leadership
        heir = lead.most_complete() if lead is not None else None
        return [*lead.transfer(now, heir)] if lead is not None and heir is not None else []

    def step_aside(self, now: Instant) -> list[Output]:
        """Lead nothing and ask for nothing, and have the most complete of the others elected at once."""
        heir = self._leadership.most_complete() if self._leadership is not None else None
        self._follow(now, None)
        return [Send(heir, TimeoutNow(self.term))] if heir is not None else []

    def _leading(self) -> Leadership:
        if self._leadership is None:
            raise LocalProtocolError("only the leader can do this")
        return self._leadership

    def propose(self, now: Instant, command: Command) -> list[Output]:
        """Put ``command`` into the log; it is applied everywhere once it is committed.

        One that weighs more than ``limits.COMMAND_BYTES`` is not: no message could carry it.
        """
        self._leading()
        return self._append(now, command) if len(pack(command)) <= limits.COMMAND_BYTES else []

    def may_change_voters(self) -> bool:
        """One change at a time, and none before an entry of our own term is committed (4.1, and its later correction)."""
        return self.is_ready and self.log.voters_index() <= self.commit

    def change_voters(self, now: Instant, voters: Iterable[NodeId]) -> list[Output]:
        """Put the new voters in force; they must differ from the present ones by one member."""
        self._leading()
        new = frozenset(voters)
        if not self.may_change_voters() or not new or len(new ^ self.voters) != 1:
            raise LocalProtocolError(f"voters cannot change from {sorted(self.voters)} to {sorted(new)} now")
        return self._append(now, Voters(tuple(sorted(new))))

    def transfer(self, now: Instant, to: NodeId) -> list[Output]:
        """Hand the leadership to ``to`` as soon as it has all of our log (4.2.3)."""
        lead = self._leading()
        if to == self._me or to not in self.voters:
            raise LocalProtocolError(f"{to} is not another voter")
        return [*lead.replicate(now, self.commit), *lead.transfer(now, to)]

    def follow(self, now: Instant, learners: frozenset[NodeId]) -> None:
        """These get the log too."""
        self._learners = learners
        if self._leadership is not None:
            self._leadership.follow(now, self.voters, learners)

    def compact(self, now: Instant, state: bytes) -> list[Output]:
        """``state`` is the replicated state at ``commit``: the log up to there is not needed any more."""
        term = self.log.term_at(self.commit)
        if self.commit == self.log.start or term is None:
            return []
        snapshot = Snapshot(self.commit, term, tuple(sorted(self.log.voters_at(self.commit))), state)
        self.log.compact(snapshot)
        return [PersistSnapshot(snapshot, keep_log=True)]

    def check(self) -> None:
        """Assert the invariants."""
        self.log.check()
        assert self.log.start <= self.commit <= self.log.last
        assert self.voters == self.log.voters_at(self.log.last)
        assert self._leadership is None or self.leader == self._me
