"""How voters agree: Raft (Ongaro and Ousterhout 2014; section numbers are those of Ongaro's dissertation)."""

from msgspec import Struct

from dmi_protocol.cluster.command import Command
from dmi_protocol.identity import NodeId


class Noop(Struct, frozen=True, tag="noop"):
    """The first entry of each leader: once it is committed, so is all before it (6.4)."""


class Voters(Struct, frozen=True, tag="voters"):
    """Who votes from this entry on, as soon as it is in a log (4.1). It differs by one member from those before."""

    voters: tuple[NodeId, ...]


class Entry(Struct, frozen=True):
    """One place in the log."""

    index: int
    term: int
    command: Command | Voters | Noop


class Snapshot(Struct, frozen=True):
    """The replicated state after the entry at ``index``, and who voted then."""

    index: int
    term: int
    voters: tuple[NodeId, ...]
    state: bytes


class PreVote(Struct, frozen=True, tag="pre-vote"):
    """Would you vote for me in ``term``? Changes nothing (9.6)."""

    term: int
    last_index: int
    last_term: int


class PreVoted(Struct, frozen=True, tag="pre-voted"):
    """The answer to the ``PreVote`` for ``term``; a refusal carries the refuser's own term."""

    term: int
    granted: bool


class Vote(Struct, frozen=True, tag="vote"):
    """Vote for me in ``term``. ``transfer`` is true when the leader itself asked me to (4.2.3)."""

    term: int
    last_index: int
    last_term: int
    transfer: bool = False


class Voted(Struct, frozen=True, tag="voted"):
    """The answer to a ``Vote``."""

    term: int
    granted: bool


class Append(Struct, frozen=True, tag="append"):
    """Entries that follow the one at ``previous_index``; a heartbeat when there are none."""

    term: int
    previous_index: int
    previous_term: int
    entries: tuple[Entry, ...]
    commit: int


class Appended(Struct, frozen=True, tag="appended"):
    """With ``matched``: my log equals yours up to ``index``. Without: try again from ``index`` on."""

    term: int
    matched: bool
    index: int


class Install(Struct, frozen=True, tag="install"):
    """A piece of the leader's snapshot, for a log that is too far behind (5.3)."""

    term: int
    index: int
    last_term: int
    voters: tuple[NodeId, ...]
    offset: int
    total: int
    data: bytes


class Installed(Struct, frozen=True, tag="installed"):
    """I have the first ``offset`` bytes of the snapshot at ``index``."""

    term: int
    index: int
    offset: int


class TimeoutNow(Struct, frozen=True, tag="timeout-now"):
    """Campaign at once: I hand the leadership over (4.2.3)."""

    term: int


ConsensusMessage = PreVote | PreVoted | Vote | Voted | Append | Appended | Install | Installed | TimeoutNow
