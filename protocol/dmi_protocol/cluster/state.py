"""The replicated state: everything that must survive, and nothing else. Equal at equal index on every node."""

import hashlib
from collections.abc import Iterator

import msgpack
from msgspec import Struct, field

from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.holding import Holding
from dmi_protocol.cluster.models import Models
from dmi_protocol.codec import convert, pack
from dmi_protocol.identity import JobId, NodeId, PublicKey, RequestId
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.messages.roles import Scope
from dmi_protocol.reasons import Reason


class MemberRecord(Struct, frozen=True):
    """A member as everybody agreed to know it."""

    node: NodeId
    name: str
    address: str
    public_key: PublicKey
    witness: bool
    draining: bool = False
    """It gets no new roles, and those that it has move away."""
    capacity: Capacity = Capacity()
    """What it has for jobs; nothing before it has said so."""


class Token(Struct, frozen=True):
    """Lets its holder do what is of a scope. ``digest`` is the SHA-256 of the token, in hexadecimal: nobody can read the token
    here."""

    digest: str
    scope: Scope
    added_unix: int


class Outcome(Struct, frozen=True):
    """What a command did: ``value`` for the one who asked, or the reason why it did nothing."""

    value: str = ""
    refusal: Reason | None = None


class ClusterState(Struct):
    """See the module."""

    mesh: str
    members: dict[NodeId, MemberRecord] = field(default_factory=dict)
    invitations: dict[PublicKey, int] = field(default_factory=dict)
    """The public half of each open invitation, and when it expires (Unix seconds)."""
    tokens: dict[str, Token] = field(default_factory=dict)
    """By name."""
    jobs: dict[JobId, AnyJob] = field(default_factory=dict)
    models: Models = field(default_factory=dict)
    """By name and number."""
    requests: dict[RequestId, Outcome] = field(default_factory=dict)
    """The last outcomes, oldest first, so that a repeated request does a thing once."""
    applied: int = 0

    def holdings(self) -> Iterator[Holding]:
        """All that has blobs."""
        yield from self.jobs.values()
        for versions in self.models.values():
            yield from versions.values()

    def encode(self) -> bytes:
        """All of it, for a snapshot."""
        return pack(self)

    @classmethod
    def decode(cls, data: bytes) -> "ClusterState":
        """The state in a snapshot. A snapshot is our own or the leader's, so it is not bounded as messages are."""
        found: ClusterState = convert(msgpack.unpackb(data, strict_map_key=False), cls)
        return found

    def digest(self) -> str:
        """Equal for equal states."""
        return hashlib.sha256(self.encode()).hexdigest()
