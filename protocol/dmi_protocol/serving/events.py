"""What enters a gateway's router, and what leaves it."""

from collections.abc import Hashable
from typing import NamedTuple

from msgspec import Struct

from dmi_protocol.instant import Instant

ReplicaId = str


class Arrived(Struct, frozen=True):
    """A request of so many rows. ``request`` was never used before; ``group`` is None where it shares no batch. Any of the
    ``versions`` of the model may compute it, the first one rather than those after it."""

    request: int
    rows: int
    group: Hashable | None
    until: Instant
    versions: tuple[str, ...]
    size_bytes: int = 0


class Abandoned(Struct, frozen=True):
    """Nobody waits for the answer any more."""

    request: int


class FleetTold(Struct, frozen=True):
    """The replicas that there are now."""

    replicas: frozenset[ReplicaId]


class Opened(Struct, frozen=True):
    """A replica can be spoken to."""

    replica: ReplicaId


class Broke(Struct, frozen=True):
    """The connection to a replica broke: its process has died, or its host."""

    replica: ReplicaId


class Heard(Struct, frozen=True):
    """A replica has said something. ``waiting`` are the rows that it was given, by all gateways, and has not computed;
    ``versions`` those that it has in memory, None where it did not say."""

    replica: ReplicaId
    waiting: int
    versions: frozenset[str] | None = None


class Computed(Struct, frozen=True):
    """A batch is computed, by ``version`` of the model. ``rejected`` has the pieces, by their place in the batch, that the model
    does not take, and what it says of them."""

    replica: ReplicaId
    batch: int
    version: str
    rejected: tuple[tuple[int, str], ...] = ()


class Died(Struct, frozen=True):
    """The process that computed this batch has died of it; its replica has another one."""

    replica: ReplicaId
    batch: int


class Declined(Struct, frozen=True):
    """A replica has not the version any more that it was to compute this batch with."""

    replica: ReplicaId
    batch: int


RouterEvent = Arrived | Abandoned | FleetTold | Opened | Broke | Heard | Computed | Died | Declined


class Piece(NamedTuple):
    """So many rows of a request, from row ``first``: what goes into one batch. ``number`` counts the pieces of the request."""

    request: int
    number: int
    first: int
    rows: int

    @property
    def weight(self) -> int:
        """What it counts in a batch: even one without rows is something to do."""
        return self.rows or 1


class Dispatch(Struct, frozen=True):
    """Have a replica compute these pieces together, in this order, by this version. Nobody waits for any of it after
    ``until``."""

    replica: ReplicaId
    batch: int
    version: str
    pieces: tuple[Piece, ...]
    until: Instant


class Answer(Struct, frozen=True):
    """All pieces of a request are computed by ``version``; what came last of each counts."""

    request: int
    version: str


class Full(Struct, frozen=True):
    """More requests, or more bytes, wait than may."""


class TooLate(Struct, frozen=True):
    """The time of the request is over. ``has_replica`` says that somebody could have computed it."""

    has_replica: bool


class Killed(Struct, frozen=True):
    """It ended as many processes as it may."""

    deaths: int


class Rejected(Struct, frozen=True):
    """The model does not take it, and says why."""

    text: str


Refusal = Full | TooLate | Killed | Rejected


class Refuse(Struct, frozen=True):
    """There is no answer."""

    request: int
    why: Refusal


RouterEffect = Dispatch | Answer | Refuse
