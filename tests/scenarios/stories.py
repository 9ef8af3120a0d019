"""Stories as text: a line that begins with ``> `` makes something happen, and what follows is what came of it."""

from pathlib import Path

from dmi_protocol.consensus.output import ApplyEntries, Output, Restore
from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import PersistEntries, PersistSnapshot, PersistVote, Send
from dmi_protocol.events import Disconnected, Stopping
from dmi_protocol.identity import NodeId
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
    TimeoutNow,
    Vote,
    Voted,
    Voters,
)
from tests.protocol.consensus.cluster import Cluster, Letter, node, nodes


class Story:
    """Replays one file: ``told`` has the text as it should be."""

    def __init__(self, text: str) -> None:
        self.lines: list[str] = []
        """What came of the line that is told."""
        self.cluster = Cluster("a")
        kept = [line for line in text.splitlines() if line.startswith(("> ", "# ")) or line == "#"]
        self.told = ""
        for line in kept:
            self.told += self._tell(line)

    def _tell(self, line: str) -> str:
        if not line.startswith("> "):
            return f"{line}\n"
        self.lines = []
        verb, *words = line[2:].split()
        getattr(self, f"_{verb}")(*words)
        return "\n".join([line, *(self.lines or ["(nothing)"]), "", ""])

    # What may happen

    def _nodes(self, voters: str, learners: str = "", per_message: str = "256") -> None:
        """``> nodes abc de``: three voters with the same beginning, and two learners that have nothing yet."""
        learners = learners.strip("-")
        empty = {name: Restored() for name in learners}
        self.cluster = Cluster(voters, learners, 0, RaftSettings(entries_per_message=int(per_message)), **empty)
        self.cluster.on_output = self._write
        self.lines = [f"voters {' '.join(voters)}, learners {' '.join(learners) or '-'}"]

    def _elect(self, name: str, *names: str) -> None:
        """One node's patience ends and everything arrives; told in a line."""
        self.cluster.tick(name)
        self.cluster.settle(*names)
        raft = self.cluster.rafts[node(name)]
        assert raft.is_leader
        self.lines = [f"{name} leads term {raft.term}, commit {raft.commit}"]

    def _tick(self, name: str) -> None:
        """The next deadline of one node comes."""
        before = self.cluster.now
        self.cluster.tick(name)
        self.lines.insert(0, f"after {self.cluster.now - before} ms")

    def _deliver(self, sender: str = "*", to: str = "*") -> None:
        """Messages that are under way arrive, once; the answers wait."""
        for letter in self._under_way(sender, to):
            self.cluster.deliver(letter)

    def _lose(self, sender: str = "*", to: str = "*") -> None:
        for letter in self._under_way(sender, to):
            self.lines.append(f"lost: {_letter(letter)}")

    def _settle(self, *names: str) -> None:
        """Everything arrives, answers too, until all is quiet; with names, among these."""
        self.cluster.settle(*names)

    def _wait(self, milliseconds: str, *names: str) -> None:
        self.cluster.run(int(milliseconds), *names)

    def _propose(self, name: str, *what: str) -> None:
        self.cluster.propose(name, *what)

    def _vote(self, name: str, voters: str) -> None:
        """The leader puts new voters in force."""
        raft = self.cluster.rafts[node(name)]
        self.cluster.do(name, raft.change_voters(self.cluster.now, nodes(voters)))

    def _transfer(self, name: str, to: str) -> None:
        self.cluster.do(name, self.cluster.rafts[node(name)].transfer(self.cluster.now, node(to)))

    def _compact(self, name: str) -> None:
        self.cluster.do(name, self.cluster.rafts[node(name)].compact(self.cluster.now, b"\x90"))

    def _stop(self, name: str) -> None:
        self.cluster.give(name, Stopping())

    def _kill(self, name: str) -> None:
        """Gone without a word; everybody's connection to it breaks."""
        self.cluster.kill(name)

    def _start(self, name: str) -> None:
        self.cluster.start(name)

    def _break(self, name: str, peer: str) -> None:
        self.cluster.give(name, Disconnected(node(peer)))

    def _show(self) -> None:
        """Who is what."""
        for name, raft in self.cluster.rafts.items():
            part = "leads" if raft.is_leader else f"follows {raft.leader}" if raft.leader else "follows nobody"
            quorum = "quorum" if raft.has_quorum(self.cluster.now) else "no quorum"
            terms = " ".join(map(str, self.cluster.terms(name)))
            log = f"log {raft.log.start}|{terms}" if terms else f"log {raft.log.start}|"
            voters = "".join(sorted(raft.voters)) or "-"
            self.lines.append(
                f"{name}: {part}, term {raft.term}, {quorum}, {log}, commit {raft.commit}, voters {voters}"
            )

    def _under_way(self, sender: str, to: str) -> list[Letter]:
        return self.cluster.take(None if sender == "*" else sender, None if to == "*" else to)

    def _write(self, name: NodeId, output: Output) -> None:
        self.lines.append(_effect(name, output))


def _effect(name: NodeId, output: Output) -> str:
    match output:
        case Send(to, message):
            assert isinstance(message, ConsensusMessage)
            return _letter(Letter(name, to, message))
        case PersistVote(term, voted_for):
            return f"{name} writes: term {term}, vote for {voted_for or 'nobody'}"
        case PersistEntries(first, entries):
            return f"{name} writes: from {first}: {_entries(entries)}"
        case PersistSnapshot(snapshot, keep_log):
            rest = "the log after it stays" if keep_log else "the log goes"
            return f"{name} writes: snapshot at {snapshot.index}, {rest}"
        case ApplyEntries(entries):
            return f"{name} applies: {_entries(entries)}"
        case Restore(snapshot):
            return f"{name} restores: snapshot at {snapshot.index}"
    raise AssertionError(output)


def _letter(letter: Letter) -> str:
    return f"{letter.sender} -> {letter.to}: {_message(letter.message)}"


def _message(message: ConsensusMessage) -> str:
    match message:
        case PreVote(term, index, last_term):
            return f"pre-vote for term {term}? my log ends at {index}, term {last_term}"
        case Vote(term, index, last_term, transfer):
            return f"vote for term {term}? my log ends at {index}, term {last_term}{', I was asked to' if transfer else ''}"
        case PreVoted(term, granted):
            return f"pre-vote {'granted' if granted else 'refused'}, term {term}"
        case Voted(term, granted):
            return f"vote {'granted' if granted else 'refused'}, term {term}"
        case Append(term, index, previous_term, entries, commit):
            what = _entries(entries) if entries else "heartbeat"
            return f"term {term}, after {index} of term {previous_term}: {what}; commit {commit}"
        case Appended(term, matched, index):
            return f"term {term}, {'I have all up to' if matched else 'no: try from'} {index}"
        case Install(term, index, _, _, offset, total, data):
            return f"term {term}, snapshot at {index}: bytes {offset} to {offset + len(data)} of {total}"
        case Installed(term, index, offset):
            return f"term {term}, I have {offset} bytes of the snapshot at {index}"
        case TimeoutNow(term):
            return f"term {term}, campaign now"
    raise AssertionError(message)


def _entries(entries: tuple[Entry, ...]) -> str:
    return ", ".join(f"{entry.index}/{entry.term} {_command(entry)}" for entry in entries)


def _command(entry: Entry) -> str:
    match entry.command:
        case Noop():
            return "noop"
        case Voters(voters):
            return f"voters {''.join(voters)}"
        case command:
            return command.request


def replay(path: Path) -> tuple[str, str]:
    """The file as it is, and as it should be."""
    text = path.read_text()
    return text, Story(text).told
