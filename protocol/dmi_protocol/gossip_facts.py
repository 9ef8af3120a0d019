"""What members spread of themselves: what a daemon is, and where a job stands. Small rumors, and lost without harm."""

from collections.abc import Iterable, Mapping

import msgpack
from msgspec import structs

from dmi_protocol.codec import convert, unpack
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import JobId, NodeId
from dmi_protocol.messages.membership import FACTS, Rumor
from dmi_protocol.messages.roles import Progressed, Served

NodeFacts = tuple[int, str, str]
"""A daemon's pid and version, and what is wrong with its disk, if anything is: as it gossips them."""
CAUSE_CHARACTERS = 100

Rumors = Mapping[tuple[NodeId, str], Rumor]


def about(job: JobId) -> str:
    """Under this key the progress of ``job`` is spread."""
    return f"job:{job}"


def facts_of(rumors: Rumors, node: NodeId) -> NodeFacts | None:
    """What ``node`` says that it is."""
    rumor = rumors.get((node, FACTS))
    return None if rumor is None else unpack_facts(rumor.value)


def progress_of(rumors: Rumors, job: JobId) -> Progressed | None:
    """The furthest that anybody says ``job`` to be."""
    found = [rumor for (_, key), rumor in rumors.items() if key == about(job)]
    told = [progress for rumor in found if (progress := unpack_progress(rumor.value)) is not None]
    return max(told, key=lambda progress: progress.step, default=None)


def served_of(rumors: Rumors, job: JobId, node: NodeId) -> Served | None:
    """What the gateway on ``node`` says that it does."""
    rumor = rumors.get((node, about(job)))
    return None if rumor is None else unpack_served(rumor.value)


def pack_told(told: Progressed | Served) -> bytes:
    """A small rumor of where a job stands."""
    packed: bytes = msgpack.packb(structs.astuple(told))
    return packed


def unpack_progress(value: bytes) -> Progressed | None:
    """What ``pack_told`` packed of a ``Progressed``; None for anything else."""
    try:
        return Progressed(*convert(unpack(value), tuple[int, int | None, float, float | None]))
    except RemoteProtocolError:
        return None


def unpack_served(value: bytes) -> Served | None:
    """What ``pack_told`` packed of a ``Served``; None for anything else."""
    try:
        return Served(*convert(unpack(value), tuple[int, int, float, float, float, float]))
    except RemoteProtocolError:
        return None


def pack_facts(facts: NodeFacts) -> bytes:
    """A small rumor of what a daemon is."""
    packed: bytes = msgpack.packb(facts)
    return packed


def unpack_facts(value: bytes) -> NodeFacts | None:
    """What ``pack_facts`` packed; None for anything else."""
    try:
        pid, version, trouble = convert(unpack(value), tuple[int, str, str])
    except RemoteProtocolError:
        return None
    return pid, version, trouble


def in_trouble(rumors: Rumors, nodes: Iterable[NodeId]) -> frozenset[NodeId]:
    """Who of ``nodes`` says that its disk takes nothing."""
    return frozenset(node for node in nodes if (known := facts_of(rumors, node)) is not None and known[2])
