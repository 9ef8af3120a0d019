"""What gateways and replicas of one deployment say to each other, from role process to role process.

None of it passes through a daemon. Each message is one envelope; those that carry tensors are followed by one raw frame for each
spec in ``tensors``, in order. What many requests want computed together is joined along the first dimension already.
"""

from msgspec import Struct

from dmi_protocol.tensor_spec import TensorSpec


class Greet(Struct, frozen=True, tag="serving-greet"):
    """A gateway is there, or the stage before, and wants to hear how much the replica has to do. A stage says with which
    ``versions`` it may still give something, whenever these are others: the next one keeps them in memory for as long."""

    versions: tuple[str, ...] = ()


class Shared(Struct, frozen=True):
    """Memory of a gateway that a replica of its host has mapped, too: a segment of ``size`` bytes. The inputs of a batch lie at
    its beginning, each where the one before ends, rounded up to ``limits.ALIGNMENT_BYTES``; from ``outputs_at`` on there is room
    for the outputs, in the same way. It belongs to the batch until the replica has answered that."""

    segment: str
    size: int
    outputs_at: int


class Compute(Struct, frozen=True, tag="serving-compute"):
    """A batch for this ``version`` of the model: the inputs ``names``, each with so many ``rows`` of one request after the other.
    Nobody waits for it any longer than ``within_ms``. With ``shared`` no frames follow."""

    batch: int
    version: str
    names: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    rows: tuple[int, ...]
    within_ms: int
    shared: Shared | None = None


class Computed(Struct, frozen=True, tag="serving-computed"):
    """The outputs ``names`` of a batch, by ``version`` of the model. ``rejected`` has the requests that the model does not take,
    by their place in the batch, and what it says of them: the tensors have no rows of theirs. ``waiting`` are the rows that the
    replica has to compute, whoever wants them. No frames follow where the tensors lie in the memory that is shared."""

    batch: int
    version: str
    names: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    rejected: tuple[tuple[int, str], ...]
    waiting: int
    is_shared: bool = False


class Broken(Struct, frozen=True, tag="serving-broken"):
    """The process that computed this batch has ended; ``how`` is a text for people."""

    batch: int
    how: str
    waiting: int


class Declined(Struct, frozen=True, tag="serving-declined"):
    """The replica has not this version, or too much to do, and has not begun the batch."""

    batch: int
    waiting: int
    versions: tuple[str, ...]


class Busy(Struct, frozen=True, tag="serving-busy"):
    """From a replica, every ``limits.REPLICA_BEAT_MS`` and whenever it can compute with another version: it is there, has so many
    rows to compute, and these versions in memory."""

    waiting: int
    versions: tuple[str, ...]
    worked: float
    """The share of the time since it said so last that it computed."""


ServingMessage = Greet | Compute | Computed | Broken | Declined | Busy
