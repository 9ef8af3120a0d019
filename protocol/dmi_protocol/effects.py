"""What leaves a machine: imperatives, done by the shell in list order.

Whatever stands after a ``Persist*`` effect leaves only when that write is durable. The shell may merge the writes of
several steps into one, as long as this stays true.
"""

from msgspec import Struct

from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.messages.consensus import Entry, Snapshot
from dmi_protocol.messages.mesh import Message
from dmi_protocol.messages.roles import Access, Fleet, Followers, Launch, Lease, RoleKey, Roster, Slices
from dmi_protocol.reasons import Reason


class Send(Struct, frozen=True):
    """Give ``message`` to the network. It may be lost, late or repeated."""

    to: NodeId
    message: Message


class PersistVote(Struct, frozen=True):
    """Make the current term and vote durable (Raft, figure 2: persistent state)."""

    term: int
    voted_for: NodeId | None


class PersistEntries(Struct, frozen=True):
    """Drop every log entry from index ``first`` on, then append ``entries``, which start there."""

    first: int
    entries: tuple[Entry, ...]


class PersistSnapshot(Struct, frozen=True):
    """Replace the stored snapshot and drop the log entries up to ``snapshot.index``.

    ``keep_log`` is false when the whole log is obsolete, because the snapshot came from the leader.
    """

    snapshot: Snapshot
    keep_log: bool


class Answer(Struct, frozen=True):
    """Tell the one who asked: ``refusal`` is None when the command is committed and applied here.

    ``value`` is what applying it gave (a job's id, the id of a new member, ...), or an empty string.
    """

    request: RequestId
    value: str = ""
    refusal: Reason | None = None


class Link(Struct, frozen=True):
    """Keep a connection to this member, and accept its key. Repeats with a new address replace the old one."""

    node: NodeId
    name: str
    address: str
    public_key: PublicKey


class Unlink(Struct, frozen=True):
    """Close the connection to ``node`` and refuse its key from now on, on open connections too."""

    node: NodeId


class Redial(Struct, frozen=True):
    """Break the connection to ``node`` and make it anew; ends in ``Connected`` or ``TurnedAway``, if it is there at all."""

    node: NodeId


class AllowInvitations(Struct, frozen=True):
    """These one-time keys, and no others, may say ``Join``."""

    keys: tuple[PublicKey, ...]


class StartRole(Struct, frozen=True):
    """Start the role process. Its bundle is already in the blob store (the machine asked with ``FetchBlob``)."""

    role: RoleKey
    launch: Launch


class TellRole(Struct, frozen=True):
    """Hand the role process of this host the addresses and keys of its peers, a lease, the slices that it computes, or whom to
    let in."""

    role: RoleKey
    message: Roster | Slices | Fleet | Access | Followers | Lease


class StopRole(Struct, frozen=True):
    """End the role process: TERM, then KILL after ``grace_ms``."""

    role: RoleKey
    grace_ms: int


class FetchBlob(Struct, frozen=True):
    """Bring the blob here from any of ``sources``; ends in ``BlobArrived`` or ``BlobFailed``."""

    blob: BlobHash
    sources: tuple[NodeId, ...]


class DropBlob(Struct, frozen=True):
    """Nothing in the replicated state speaks of this blob any more: free its space."""

    blob: BlobHash


class ForgetJob(Struct, frozen=True):
    """The job has ended on this host: its working directories may go, its logs and ledgers stay."""

    job: JobId


class Explain(Struct, frozen=True):
    """A reason has changed: log its sentence once. ``subject`` is a job's id, a member's name or ``mesh``."""

    subject: str
    reason: Reason


class Retire(Struct, frozen=True):
    """This node is a member no more: end it in good order, say why, and let nobody start it again."""

    reason: Reason


class Changed(Struct, frozen=True):
    """Something that ``status`` shows is new: wake who watches."""


Effect = (
    Send
    | PersistVote
    | PersistEntries
    | PersistSnapshot
    | Answer
    | Link
    | Unlink
    | Redial
    | AllowInvitations
    | StartRole
    | TellRole
    | StopRole
    | FetchBlob
    | DropBlob
    | ForgetJob
    | Explain
    | Retire
    | Changed
)
