"""Who is here: SWIM (Das et al. 2002) with Lifeguard (Dadgar et al. 2018)."""

from typing import Literal

from msgspec import Struct

from dmi_protocol.identity import NodeId
from dmi_protocol.messages.bounds import Count

Standing = Literal["alive", "suspect", "dead", "left"]
"""``left`` is what a member says of itself when it ends in good order."""


class Update(Struct, frozen=True):
    """What somebody holds of ``node``; ``accuser`` is who suspects it (Lifeguard counts independent accusers)."""

    node: NodeId
    standing: Standing
    incarnation: Count
    accuser: NodeId | None = None


FACTS = "node"
"""The key of what a member spreads of itself."""


class Rumor(Struct, frozen=True):
    """A small value that ``origin`` spreads; a higher version replaces a lower one."""

    origin: NodeId
    key: str
    version: Count
    value: bytes


class Ping(Struct, frozen=True, tag="ping"):
    """Are you there? Gossip rides along."""

    sequence: Count
    updates: tuple[Update, ...] = ()
    rumors: tuple[Rumor, ...] = ()


class Ack(Struct, frozen=True, tag="ack"):
    """I am here; or, for an indirect probe, the one you asked about is."""

    sequence: Count
    updates: tuple[Update, ...] = ()
    rumors: tuple[Rumor, ...] = ()


class PingRequest(Struct, frozen=True, tag="ping-request"):
    """I cannot reach ``target``; can you?"""

    sequence: Count
    target: NodeId
    updates: tuple[Update, ...] = ()


class Nack(Struct, frozen=True, tag="nack"):
    """I could not reach it either, but I am here (Lifeguard: the asker need not blame itself)."""

    sequence: Count


class Gossip(Struct, frozen=True, tag="gossip"):
    """News that does not wait for the next probe."""

    updates: tuple[Update, ...] = ()
    rumors: tuple[Rumor, ...] = ()


MembershipMessage = Ping | Ack | PingRequest | Nack | Gossip
