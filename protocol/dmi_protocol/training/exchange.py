"""Events and effects of the two machines of an exchange, the shard's (``shard.py``) and the worker's (``worker.py``).

Tensors are handles of the shell; workers, shards and buckets are small numbers, as in the roster and the layout.
"""

from typing import Literal

from msgspec import Struct

from dmi_protocol.training.step import Handle, Release, Subtree, Sum

# What happens to a shard.


class Rostered(Struct, frozen=True):
    """Who takes part, from this generation on."""

    generation: int
    workers: tuple[int, ...]
    lead: int


class Greeted(Struct, frozen=True):
    """A worker said ``Hello``. ``fields`` are its fingerprint."""

    worker: int
    generation: int
    fields: tuple[tuple[str, str], ...]
    definition: bytes


class Opened(Struct, frozen=True):
    """The shell has understood the definition, and has version ``step`` from a checkpoint, or waits for version 0.

    ``buckets`` are those of this shard that change, ``frozen`` those that it only keeps; ``clips`` says that there is a
    ``clip_norm``; ``shards`` hold buckets that change (a small model may have fewer buckets than servers).
    """

    buckets: tuple[int, ...]
    frozen: tuple[int, ...]
    leaves: int
    clips: bool
    shards: tuple[int, ...]
    step: int | None = None
    fingerprint: tuple[tuple[str, str], ...] = ()
    """Of those who made the checkpoint."""


class ResumeAsked(Struct, frozen=True):
    """A worker wants what the checkpoint keeps of the run itself, to begin where that was made."""

    worker: int
    generation: int


class Initialized(Struct, frozen=True):
    """A bucket has its initial values."""

    worker: int
    generation: int
    bucket: int


class Began(Struct, frozen=True):
    """A worker has installed version ``step`` and starts on it."""

    worker: int
    generation: int
    step: int
    leaf_sizes: tuple[int, ...]
    hyper: bytes


class Contributed(Struct, frozen=True):
    """The sum of a subtree has come; the shell holds it under ``handle``, None when it is absent."""

    worker: int
    generation: int
    step: int
    bucket: int
    subtree: Subtree
    handle: Handle | None


class Measured(Struct, frozen=True):
    """The squared norm of a bucket's root: the answer to ``Measure``."""

    step: int
    bucket: int
    square: float


class NormsHeard(Struct, frozen=True):
    """Another shard has told the squared norms of its roots."""

    shard: int
    generation: int
    step: int
    squares: tuple[tuple[int, float], ...]


class Pulled(Struct, frozen=True):
    """A worker wants to be shown buckets of a version."""

    worker: int
    generation: int
    version: int
    buckets: tuple[int, ...]


class CheckpointAsked(Struct, frozen=True):
    """A worker's script asks for a checkpoint of version ``step``; only the lead's wish counts."""

    worker: int
    generation: int
    step: int
    extra: bytes


class StateAsked(Struct, frozen=True):
    """The lead wants to have version ``step`` with its optimizer state."""

    worker: int
    generation: int
    step: int


class FinishAsked(Struct, frozen=True):
    """A worker's script is over after ``step`` steps."""

    worker: int
    generation: int
    step: int
    extra: bytes


class PartDurable(Struct, frozen=True):
    """The answer to ``WritePart``."""

    step: int
    final: bool


FromWorker = (
    Greeted | ResumeAsked | Initialized | Began | Contributed | Pulled | CheckpointAsked | StateAsked | FinishAsked
)
ShardEvent = Rostered | FromWorker | Opened | Measured | NormsHeard | PartDurable

# What a shard wants done.


class Open(Struct, frozen=True):
    """Make room for what ``definition`` describes; answered by ``Opened``."""

    definition: bytes


class Welcome(Struct, frozen=True):
    """Tell the worker that it may begin ``step``."""

    worker: int
    step: int


class Resume(Struct, frozen=True):
    """Tell the worker what the checkpoint keeps of the run."""

    worker: int


class Decline(Struct, frozen=True):
    """Tell the worker that what it wants is impossible now. ``value`` is what we have instead."""

    worker: int
    kind: Literal["generation", "version", "peer", "step"]
    value: str


class Disagree(Struct, frozen=True):
    """Two workers contradict each other in ``field``: the job cannot go on. ``other`` is None when it is not a worker but
    the checkpoint that this one contradicts."""

    worker: int
    other: int | None
    field: str
    value: str
    other_value: str


class Measure(Struct, frozen=True):
    """Take the squared norm of this root (absent is zero); answered by ``Measured``."""

    step: int
    bucket: int
    handle: Handle | None


class TellNorms(Struct, frozen=True):
    """Tell every other shard our squared norms, in bucket order."""

    step: int
    squares: tuple[tuple[int, float], ...]


class Apply(Struct, frozen=True):
    """One optimizer step on one bucket: version ``step`` and this root make version ``step + 1``.

    ``norms`` are the squared norms of all buckets in bucket order, empty when the job does not clip.
    """

    step: int
    bucket: int
    handle: Handle | None
    hyper: bytes
    norms: tuple[tuple[int, float], ...]


class Show(Struct, frozen=True):
    """Send ``bucket`` at ``version`` to these workers."""

    version: int
    bucket: int
    workers: tuple[int, ...]


class Forget(Struct, frozen=True):
    """No worker can want ``version`` any more: its memory may be written again."""

    version: int


class WritePart(Struct, frozen=True):
    """Write version ``step`` with its optimizer state, as they are before any later effect, to disk; answered by
    ``PartDurable``.

    ``fingerprint`` is that of the workers."""

    step: int
    extra: bytes
    final: bool
    fingerprint: tuple[tuple[str, str], ...] = ()


class GiveState(Struct, frozen=True):
    """Send this worker version ``step`` with its optimizer state."""

    worker: int
    step: int


class SayFinished(Struct, frozen=True):
    """Tell these workers that the job's last version is durable here."""

    workers: tuple[int, ...]


class End(Struct, frozen=True):
    """The shard has done all its work."""


ShardEffect = (
    Sum
    | Release
    | Open
    | Welcome
    | Resume
    | Decline
    | Disagree
    | Measure
    | TellNorms
    | Apply
    | Show
    | Forget
    | WritePart
    | GiveState
    | SayFinished
    | End
)

# What happens to a worker.


class Assigned(Struct, frozen=True):
    """The leaves of this worker, from this generation on."""

    generation: int
    leaves: tuple[int, ...]


class StepBegan(Struct, frozen=True):
    """The script has begun ``step``; its parameters are at version ``step``."""

    step: int


class Computed(Struct, frozen=True):
    """The weighted gradient of one leaf for one bucket, None when absent."""

    step: int
    leaf: int
    bucket: int
    handle: Handle | None


class Shown(Struct, frozen=True):
    """A server has shown ``bucket`` at ``version``, in ``generation``."""

    generation: int
    version: int
    bucket: int


class Waited(Struct, frozen=True):
    """The shell has waited long and heard nothing, or a connection has come back: say again what may be lost."""


WorkerEvent = Assigned | StepBegan | Computed | Shown | Waited

# What a worker wants done.


class Compute(Struct, frozen=True):
    """Hand this leaf of the step in flight to the script."""

    step: int
    leaf: int


class Push(Struct, frozen=True):
    """Send the sum to the bucket's server. The handle stays valid, and unchanged, until it is released."""

    generation: int
    step: int
    bucket: int
    subtree: Subtree
    handle: Handle | None


class Pull(Struct, frozen=True):
    """Ask the servers for what was not shown yet."""

    generation: int
    version: int
    buckets: tuple[int, ...]


class Install(Struct, frozen=True):
    """All buckets of ``version`` are here: the step before it is complete everywhere."""

    version: int


WorkerEffect = Sum | Release | Compute | Push | Pull | Install
