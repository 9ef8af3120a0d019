"""How voters agree: Raft (Ongaro and Ousterhout 2014; section numbers are those of Ongaro's dissertation)."""

from msgspec import Struct

from dmi_protocol.cluster.command import Command
from dmi_protocol.identity import NodeId
from dmi_protocol.messages.bounds import Count


class Noop(Struct, frozen=True, tag="noop"):
    """The first entry of each leader: once it is committed, so is all before it (6.4)."""


class Voters(Struct, frozen=True, tag="voters"):
    """Who votes from this entry on, as soon as it is in a log (4.1). It differs by one member from those before."""

    voters: tuple[NodeId, ...]


class Entry(Struct, frozen=True):
    """One place in the log."""

    index: Count
    term: Count
    command: Command | Voters | Noop


class Snapshot(Struct, frozen=True):
    """The replicated state after the entry at ``index``, and who voted then."""

    index: Count
    term: Count
    voters: tuple[NodeId, ...]
    state: bytes


class PreVote(Struct, frozen=True, tag="pre-vote"):
    """Would you vote for me in ``term``? Changes nothing (9.6)."""

    term: Count
    last_index: Count
    last_term: Count


class PreVoted(Struct, frozen=True, tag="pre-voted"):
    """The answer to the ``PreVote`` for ``term``; a refusal carries the refuser's own term."""

    term: Count
    granted: bool


class Vote(Struct, frozen=True, tag="vote"):
    """Vote for me in ``term``. ``transfer`` is true when the leader itself asked me to (4.2.3)."""

    term: Count
    last_index: Count
    last_term: Count
    transfer: bool = False


class Voted(Struct, frozen=True, tag="voted"):
    """The answer to a ``Vote``."""

    term: Count
    granted: bool


class Append(Struct, frozen=True, tag="append"):
    """Entries that follow the one at ``previous_index``; a heartbeat when there are none."""

    term: Count
    previous_index: Count
    previous_term: Count
    entries: tuple[Entry, ...]
    commit: Count


class Appended(Struct, frozen=True, tag="appended"):
    """With ``matched``: my log equals yours up to ``index``. Without: try again from ``index`` on."""

    term: Count
    matched: bool
    index: Count


class Install(Struct, frozen=True, tag="install"):
    """A piece of the leader's snapshot, for a log that is too far behind (5.3)."""

    term: Count
    index: Count
    last_term: Count
    voters: tuple[NodeId, ...]
    offset: Count
    total: Count
    data: bytes


class Installed(Struct, frozen=True, tag="installed"):
    """I have the first ``offset`` bytes of the snapshot at ``index``."""

    term: Count
    index: Count
    offset: Count


class TimeoutNow(Struct, frozen=True, tag="timeout-now"):
    """Campaign at once: I hand the leadership over (4.2.3)."""

    term: Count


ConsensusMessage = PreVote | PreVoted | Vote | Voted | Append | Appended | Install | Installed | TimeoutNow
