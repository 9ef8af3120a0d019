"""What enters a machine. Events are past participles: something happened, and this is all that is known of it."""

from msgspec import Struct

from dmi_protocol.cluster.command import Command
from dmi_protocol.identity import BlobHash, NodeId, PublicKey, RequestId
from dmi_protocol.messages.control import Join
from dmi_protocol.messages.mesh import Message
from dmi_protocol.messages.roles import RoleEvent, RoleKey


class Received(Struct, frozen=True):
    """A message came from the authenticated ``sender``."""

    sender: NodeId
    message: Message


class Ticked(Struct, frozen=True):
    """The machine's own deadline has come (or passed)."""


class Connected(Struct, frozen=True):
    """Our outgoing connection to ``peer`` finished its handshake."""

    peer: NodeId


class Disconnected(Struct, frozen=True):
    """Our outgoing connection to ``peer`` broke. The peer may be dead, or may only be slow to come back."""

    peer: NodeId


class TurnedAway(Struct, frozen=True):
    """``peer`` does not take our key: it does not know us yet, or does not any more."""

    peer: NodeId


class Asked(Struct, frozen=True):
    """Somebody on this host wants ``command`` committed. Answered once, by ``Answer``, whatever happens.

    ``within_ms`` is the patience of the one who asks.
    """

    request: RequestId
    command: Command
    within_ms: int = 10_000


class JoinAsked(Struct, frozen=True):
    """A stranger holding the secret half of ``invitation`` wants in. Answered by ``Answer`` with the same request."""

    request: RequestId
    invitation: PublicKey
    join: Join
    at_unix: int


class RoleHappened(Struct, frozen=True):
    """A role process of this host said something or ended; see ``messages/roles.py``."""

    role: RoleKey
    event: RoleEvent


class BlobArrived(Struct, frozen=True):
    """The whole file with this hash is now durable in this host's blob store."""

    blob: BlobHash


class BlobFailed(Struct, frozen=True):
    """No source could give the blob. ``detail`` is a short reason for people."""

    blob: BlobHash
    detail: str


class BlobPinned(Struct, frozen=True):
    """Somebody is about to have something agreed on that speaks of this blob: it stays here for a while, whatever the state
    says meanwhile."""

    blob: BlobHash


class DiskFailed(Struct, frozen=True):
    """What was to be made durable is not: the disk is full, or fails. The shell keeps it, with all that stood after it, and
    tries again; until ``DiskReturned`` nothing may be promised. ``cause`` is a short text for people."""

    cause: str


class DiskReturned(Struct, frozen=True):
    """All that was to be durable is."""


class Stopping(Struct, frozen=True):
    """The daemon was asked to end: hand leadership over and tell the others."""


Event = (
    Received
    | Ticked
    | Connected
    | Disconnected
    | TurnedAway
    | Asked
    | JoinAsked
    | RoleHappened
    | BlobArrived
    | BlobFailed
    | BlobPinned
    | DiskFailed
    | DiskReturned
    | Stopping
)
