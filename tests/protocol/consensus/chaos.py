"""One seed is one bad hour of a few voters: messages are lost, late, repeated and out of order, nodes crash between effects."""

from collections import Counter
from random import Random

import msgpack

from dmi_protocol.consensus.output import ApplyEntries, Output, Restore
from dmi_protocol.consensus.raft import Raft
from dmi_protocol.consensus.settings import RaftSettings
from dmi_protocol.events import Connected, Disconnected, Event, Received, Ticked
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.consensus import Vote
from tests.protocol.consensus.cluster import Cluster, command

LETTERS = 60
"""More are not kept under way: the oldest are lost."""


class Chaos:
    """``act`` does one random thing and looks at every promise of figure 3.2."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        settings = RaftSettings(entries_per_message=self.random.choice([1, 1, 2, 256]))
        voters = self.random.choice(["abc", "abcde"])
        learners = "" if voters == "abcde" else "de"
        self.cluster = Cluster(voters, learners, seed, settings)
        self.cluster.on_output = self._look
        self.names = sorted(self.cluster.disks)
        self.counts: Counter[str] = Counter()
        self.committed: dict[int, tuple[str, int]] = {}
        """By index: the entry, and the smallest term in which somebody knew it to be committed."""
        self.leaders: dict[int, NodeId] = {}
        self.at: dict[NodeId, int] = {}
        """Up to which index each node has applied since it was started."""

    # What may happen

    def act(self) -> None:
        self.cluster.now = Instant(self.cluster.now + self.random.choice([0, 1, 5, 20, 60]))
        deeds = [self._deliver] * 60 + [self._tick] * 8 + [self._propose] * 3 + [self._start] * 4
        deeds += [self._repeat, self._lose, self._crash, self._crash_in_mid_step, self._short_reign, self._break_link]
        deeds += [self._mend_link, self._compact, self._vote_on, self._hand_over]
        self.random.choice(deeds)()
        self.cluster.letters = self.cluster.letters[-LETTERS:]
        self._check_leaders()

    def _some(self, *, leading: bool = False) -> NodeId | None:
        there = [n for n, raft in sorted(self.cluster.rafts.items()) if raft.is_leader or not leading]
        return self.random.choice(there) if there else None

    def _step(self, name: NodeId, event: Event) -> None:
        self.cluster.give(name, event)

    def _deliver(self) -> None:
        if self.cluster.letters:
            letter = self.cluster.letters.pop(self.random.randrange(len(self.cluster.letters)))
            self.cluster.deliver(letter)

    def _tick(self) -> None:
        for name, raft in sorted(self.cluster.rafts.items()):
            deadline = raft.deadline()
            if deadline is not None and deadline <= self.cluster.now and self.random.random() < 0.8:
                self._step(name, Ticked())

    def _propose(self) -> None:
        leader = self._some(leading=True)
        if leader is not None:
            self.counts["proposals"] += 1
            self.cluster.propose(leader, f"{self.counts['proposals']}")

    def _repeat(self) -> None:
        if self.cluster.letters:
            self.cluster.letters.append(self.random.choice(self.cluster.letters))

    def _lose(self) -> None:
        self.random.shuffle(self.cluster.letters)
        del self.cluster.letters[: len(self.cluster.letters) // 2]

    def _crash(self) -> None:
        name = self._some()
        if name is not None and self.random.random() < 0.4:
            self.counts["crashes"] += 1
            self._end(name)
            for other in sorted(self.cluster.rafts):
                if self.random.random() < 0.5:
                    self._step(other, Disconnected(name))

    def _crash_in_mid_step(self) -> None:
        """A message arrives, and the node ends between two effects of its answer."""
        if not self.cluster.letters:
            return
        votes = [letter for letter in self.cluster.letters if isinstance(letter.message, Vote)]
        letter = self.random.choice(votes or self.cluster.letters)
        raft = self.cluster.rafts.get(letter.to)
        if raft is not None:
            self.counts["torn steps"] += 1
            output = raft.step(self.cluster.now, Received(letter.sender, letter.message))
            self.cluster.do(letter.to, output, most=self.random.randint(0, len(output)))
            self._end(letter.to)
            if self.random.random() < 0.5:
                self._begin(letter.to)

    def _short_reign(self) -> None:
        """A leader gets a few words out to somebody, and is gone with all that it said to others (figure 3.7)."""
        leader = self._some(leading=True)
        if leader is not None:
            self.counts["short reigns"] += 1
            self.cluster.propose(leader, f"reign {self.counts['short reigns']}")
            said = [letter for letter in self.cluster.letters if letter.sender == leader]
            for letter in self.random.sample(said, min(len(said), self.random.randint(0, 3))):
                self.cluster.deliver(letter)
            if leader in self.cluster.rafts:
                self._end(leader)
            self.cluster.letters = [letter for letter in self.cluster.letters if letter.sender != leader]
            for other in sorted(self.cluster.rafts):
                self._step(other, Disconnected(leader))

    def _end(self, name: NodeId) -> None:
        self.cluster.rafts.pop(name)
        self.at.pop(name, None)

    def _begin(self, name: NodeId) -> None:
        snapshot = self.cluster.disks[name].snapshot
        self.at[name] = snapshot.index if snapshot is not None else 0
        self.cluster.start(name)

    def _start(self) -> None:
        away = [name for name in self.names if name not in self.cluster.rafts]
        if away:
            self._begin(self.random.choice(away))

    def _compact(self) -> None:
        name = self._some()
        if name is not None and self.cluster.rafts[name].commit - self.cluster.rafts[name].log.start > 3:
            self.counts["snapshots"] += 1
            state = msgpack.packb(self.cluster.states[name])
            self.cluster.do(name, self.cluster.rafts[name].compact(self.cluster.now, state))

    def _vote_on(self) -> None:
        leader = self._some(leading=True)
        if leader is None or not self.cluster.rafts[leader].may_change_voters():
            return
        raft = self.cluster.rafts[leader]
        voters = raft.voters ^ {NodeId(self.random.choice(self.names))}
        if len(voters) >= 2:
            self.counts["voter changes"] += 1
            self.cluster.do(leader, raft.change_voters(self.cluster.now, voters))

    def _hand_over(self) -> None:
        leader = self._some(leading=True)
        others = sorted(self.cluster.rafts[leader].voters - {leader}) if leader is not None else []
        if leader is not None and others:
            self.counts["transfers"] += 1
            raft = self.cluster.rafts[leader]
            self.cluster.do(leader, raft.transfer(self.cluster.now, self.random.choice(others)))

    def _break_link(self) -> None:
        one, other = self._some(), self._some()
        if one is not None and other is not None and one != other:
            self._step(one, Disconnected(other))

    def _mend_link(self) -> None:
        one, other = self._some(), self._some()
        if one is not None and other is not None and one != other:
            self._step(one, Connected(other))

    # What must be true

    def _look(self, name: NodeId, output: Output) -> None:
        """State machine safety: nobody ever applies another entry at an index."""
        term = self.cluster.rafts[name].term
        if isinstance(output, ApplyEntries):
            for entry in output.entries:
                assert entry.index == self.at.get(name, 1) + 1, f"{name} applies {entry.index} out of order"
                self.at[name] = entry.index
                what, known = self.committed.setdefault(entry.index, (repr(entry), term))
                assert what == repr(entry), f"{name} applies {entry}, another {what}"
                self.committed[entry.index] = what, min(known, term)
        elif isinstance(output, Restore):
            assert output.snapshot.index > self.at.get(name, 1), f"{name} goes back to {output.snapshot.index}"
            self.at[name] = output.snapshot.index
            self.counts["installs"] += 1

    def _check_leaders(self) -> None:
        for name, raft in self.cluster.rafts.items():
            if raft.is_leader and raft.term not in self.leaders:
                self.counts["elections"] += 1
                self._check_completeness(raft)
            if raft.is_leader:
                first = self.leaders.setdefault(raft.term, name)
                assert first == name, f"election safety: {first} and {name} lead term {raft.term}"

    def _check_completeness(self, leader: Raft) -> None:
        """Leader completeness: a new leader has everything that was committed in terms before its own."""
        for index, (what, term) in self.committed.items():
            if term < leader.term and index > leader.log.start:
                have = leader.log.between(index, index)
                assert have, f"a new leader lacks {what}"
                assert repr(have[0]) == what, f"a new leader has {have[0]}, committed was {what}"

    def check_logs(self) -> None:
        """Log matching: equal index and term mean equal logs up to there."""
        rafts = list(self.cluster.rafts.values())
        for one in rafts:
            for other in rafts:
                first = max(one.log.start, other.log.start) + 1
                last = min(one.log.last, other.log.last)
                while last >= first and one.log.term_at(last) != other.log.term_at(last):
                    last -= 1
                assert one.log.between(first, last) == other.log.between(first, last)

    def heal(self) -> None:
        """Everybody is there and every message arrives: now there must be progress, and one state."""
        for name in self.names:
            if name not in self.cluster.rafts:
                self._begin(name)
        self.cluster.run(10_000)
        leaders = [name for name, raft in self.cluster.rafts.items() if raft.is_ready]
        assert len(leaders) == 1, f"leaders: {leaders}"
        self.cluster.do(leaders[0], self.cluster.rafts[leaders[0]].propose(self.cluster.now, command("last")))
        self.cluster.run(3_000)
        states = [self.cluster.states[name] for name in sorted(self.cluster.rafts)]
        assert all(state == states[0] for state in states)
        assert "last" in states[0][-1][2]  # type: ignore[operator]
        assert [index for index, _, _ in states[0]] == list(range(2, len(states[0]) + 2))
        self._check_leaders()
        self.check_logs()
