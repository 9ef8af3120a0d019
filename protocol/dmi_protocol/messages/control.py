"""Joining, and asking the coordinator to have something agreed."""

from msgspec import Struct

from dmi_protocol.cluster.command import Command
from dmi_protocol.identity import NodeId, PublicKey
from dmi_protocol.messages.bounds import Count
from dmi_protocol.reasons import Reason


class Join(Struct, frozen=True, tag="join"):
    """Said by the holder of an invitation, under the invitation's key: make this node a member."""

    name: str
    address: str
    public_key: PublicKey
    witness: bool


class Introduced(Struct, frozen=True):
    """A member, as a newcomer must know it to speak to it."""

    node: NodeId
    name: str
    address: str
    public_key: PublicKey


class Welcomed(Struct, frozen=True, tag="welcomed"):
    """The answer to ``Join``: you are a member, and these are the others."""

    mesh: str
    members: tuple[Introduced, ...]


class Refused(Struct, frozen=True, tag="refused"):
    """The answer to ``Join``: no."""

    reason: Reason


class Propose(Struct, frozen=True, tag="propose"):
    """To the coordinator: have this agreed. Repeated until its outcome shows in the sender's own state."""

    command: Command


class Leaving(Struct, frozen=True, tag="leaving"):
    """This daemon is being stopped in good order; it stays a member."""


class Seeking(Struct, frozen=True, tag="seeking"):
    """I cannot hear a coordinator; which one do you hear?"""


class Coordinated(Struct, frozen=True, tag="coordinated"):
    """The answer to ``Seeking``: by this one, which is a member in the state after the entry at ``applied``."""

    by: Introduced
    applied: Count


class Expelled(Struct, frozen=True, tag="expelled"):
    """The last word to a node before its key counts no more: the state after the entry at ``applied`` does not have it."""

    applied: Count


ControlMessage = Propose | Leaving | Seeking | Coordinated | Expelled
"""Between members. ``Join`` and its answers are spoken under an invitation's key, and never reach a machine."""
