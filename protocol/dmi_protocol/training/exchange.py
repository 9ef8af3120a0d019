"""Events and effects of the two machines of an exchange, the shard's (``shard.py``) and the worker's (``worker.py``).

Tensors are handles of the shell; workers, shards and buckets are small numbers, as in the roster and the layout.
"""

from typing import Literal

from msgspec import Struct

from dmi_protocol.instant import Instant
from dmi_protocol.training.step import Handle, Release, Subtree, Sum

# What happens to a shard.


class Rostered(Struct, frozen=True):
    """Who takes part, from this generation on. ``joiners`` are those of ``workers`` that come in now, or have no leaves yet.

    ``backups`` and ``filling`` are the servers that have a copy of the shard, and that are given one."""

    generation: int
    workers: tuple[int, ...]
    lead: int
    joiners: tuple[int, ...] = ()
    backups: tuple[int, ...] = ()
    filling: tuple[int, ...] = ()


class Greeted(Struct, frozen=True):
    """A worker said ``Hello``. ``fields`` are its fingerprint."""

    worker: int
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


class Initialized(Struct, frozen=True):
    """A bucket has its initial values."""

    worker: int
    bucket: int


class Began(Struct, frozen=True):
    """A worker has installed version ``step`` and starts on it."""

    worker: int
    step: int
    leaf_sizes: tuple[int, ...]
    hyper: bytes
    extra: bytes | None = None
    """From the lead, while somebody waits to come in: what it keeps of the run at ``step``."""
    written: bytes = b""
    """The digest of the buffers that its script has written since the step before."""
    data: str = ""
    """What the batch is taken from, for people."""


class Contributed(Struct, frozen=True):
    """The sum of a subtree has come; the shell holds it under ``handle``, None when it is absent."""

    worker: int
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
    """Another shard has told the squared norms of its roots; it ``asks`` when it has not heard ours, or another's."""

    shard: int
    step: int
    squares: tuple[tuple[int, float], ...]
    asks: bool = False


class Pulled(Struct, frozen=True):
    """A worker wants to be shown buckets of a version."""

    worker: int
    version: int
    buckets: tuple[int, ...]


class CheckpointAsked(Struct, frozen=True):
    """A worker's script asks for a checkpoint of version ``step``; only the lead's wish counts."""

    worker: int
    step: int
    extra: bytes


class StateAsked(Struct, frozen=True):
    """The lead wants to have the optimizer's state of these buckets at version ``step``."""

    worker: int
    step: int
    buckets: tuple[int, ...]


class FinishAsked(Struct, frozen=True):
    """A worker's script is over after ``step`` steps. ``kept`` are digests of what it keeps beside the model, by name."""

    worker: int
    step: int
    extra: bytes
    kept: tuple[tuple[str, str], ...] = ()


class PartDurable(Struct, frozen=True):
    """The answer to ``WritePart``."""

    step: int
    final: bool


class Copied(Struct, frozen=True):
    """A server has ``bucket`` at ``version``."""

    server: int
    bucket: int
    version: int


class CopyTold(Struct, frozen=True):
    """A server says all that it has: the answer to ``QueryReplica``."""

    server: int
    versions: tuple[tuple[int, int], ...]


class Leased(Struct, frozen=True):
    """New versions may be shown until then."""

    until: Instant


class Waited(Struct, frozen=True):
    """Nothing was heard for a while: ask what has come of what was said."""


FromWorker = (
    Greeted | ResumeAsked | Initialized | Began | Contributed | Pulled | CheckpointAsked | StateAsked | FinishAsked
)
ShardEvent = Rostered | FromWorker | Opened | Measured | NormsHeard | PartDurable | Copied | CopyTold | Leased | Waited

# What a shard wants done.


class Open(Struct, frozen=True):
    """Make room for what ``definition`` describes; answered by ``Opened``."""

    definition: bytes


class WelcomeWorker(Struct, frozen=True):
    """Tell the worker that it may begin ``step``. A joiner gets what the lead keeps of the run there."""

    worker: int
    step: int
    extra: bytes | None = None


class GiveResume(Struct, frozen=True):
    """Tell the worker what the checkpoint keeps of the run."""

    worker: int


class Decline(Struct, frozen=True):
    """Tell the worker that what it wants is impossible now. ``value`` is what we have instead."""

    worker: int
    kind: Literal["version", "peer", "step"]
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
    """Tell every other shard our squared norms, in bucket order; who ``asks`` wants to hear theirs."""

    step: int
    squares: tuple[tuple[int, float], ...]
    asks: bool = False


class ApplyRoot(Struct, frozen=True):
    """One optimizer step on one bucket: version ``step`` and this root make version ``step + 1``.

    ``norms`` are the squared norms of all buckets in bucket order, empty when the job does not clip.
    """

    step: int
    bucket: int
    handle: Handle | None
    hyper: bytes
    norms: tuple[tuple[int, float], ...]


class BeginFill(Struct, frozen=True):
    """Tell this server what it is to have a copy of; buckets follow."""

    server: int
    definition: bytes
    fingerprint: tuple[tuple[str, str], ...]


class CopyBucket(Struct, frozen=True):
    """Send this server a bucket at ``version``, with its optimizer's state, as they are before any later effect."""

    server: int
    bucket: int
    version: int


class ReplicateRoot(Struct, frozen=True):
    """Send these servers the root, to be applied as in the ``ApplyRoot`` of the same bucket. The handle stays valid, and
    unchanged, until it is released."""

    servers: tuple[int, ...]
    step: int
    bucket: int
    handle: Handle | None
    hyper: bytes
    norms: tuple[tuple[int, float], ...]


class QueryReplica(Struct, frozen=True):
    """Ask this server what it has of the shard; answered by ``CopyTold``."""

    server: int


class TellCaughtUp(Struct, frozen=True):
    """This server, which was being filled, has all that was ever shown, and will before it is shown."""

    server: int


class ShowBucket(Struct, frozen=True):
    """Send ``bucket`` at ``version`` to these workers."""

    version: int
    bucket: int
    workers: tuple[int, ...]


class TellOutstanding(Struct, frozen=True):
    """Tell this worker which subtrees have come of each of these buckets, which are not whole in ``step``."""

    worker: int
    step: int
    held: tuple[tuple[int, tuple[Subtree, ...]], ...]


class TellLacking(Struct, frozen=True):
    """Tell the lead that these buckets have no initial values."""

    worker: int
    buckets: tuple[int, ...]


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
    """Send this worker the optimizer's state of these buckets at version ``step``."""

    worker: int
    step: int
    buckets: tuple[int, ...]


class SayFinished(Struct, frozen=True):
    """Tell these workers that the job's last version is durable here."""

    workers: tuple[int, ...]


class TellDifference(Struct, frozen=True):
    """At the end ``worker`` keeps other things under ``names`` than the lead, whose are kept with the job."""

    worker: int
    lead: int
    names: tuple[str, ...]


class End(Struct, frozen=True):
    """The shard has done all its work."""


ToWorkers = (
    WelcomeWorker
    | GiveResume
    | Decline
    | Disagree
    | ShowBucket
    | TellOutstanding
    | TellLacking
    | GiveState
    | SayFinished
    | TellDifference
)
ToServers = BeginFill | CopyBucket | ReplicateRoot | QueryReplica | TellCaughtUp | TellNorms
ShardEffect = Sum | Release | Open | Measure | ApplyRoot | Forget | ToWorkers | ToServers | WritePart | End

# What happens to a worker.


class Assigned(Struct, frozen=True):
    """The leaves of this worker, from this generation on. ``moved`` are the buckets that have another primary now."""

    generation: int
    leaves: tuple[int, ...]
    moved: tuple[int, ...] = ()


class StepBegan(Struct, frozen=True):
    """The script has installed version ``step`` and begins the step. ``leaves`` are its own in this step, where they are not
    those that it was assigned."""

    step: int
    leaves: tuple[int, ...] | None = None


class Computed(Struct, frozen=True):
    """The weighted gradient of one leaf for one bucket, None when absent."""

    step: int
    leaf: int
    bucket: int
    handle: Handle | None


class Shown(Struct, frozen=True):
    """A server has shown ``bucket`` at ``version``."""

    version: int
    bucket: int


class OutstandingHeard(Struct, frozen=True):
    """A server says what has come of ``bucket`` in ``step``, which is not whole there."""

    step: int
    bucket: int
    held: tuple[Subtree, ...]


WorkerEvent = Assigned | StepBegan | Computed | Shown | OutstandingHeard | Waited

# What a worker wants done.


class Compute(Struct, frozen=True):
    """Hand this leaf of the step in flight to the script."""

    step: int
    leaf: int


class Push(Struct, frozen=True):
    """Send the sum to the bucket's server. The handle stays valid, and unchanged, until it is released."""

    step: int
    bucket: int
    subtree: Subtree
    handle: Handle | None


class PullBuckets(Struct, frozen=True):
    """Ask the servers for what was not shown yet."""

    version: int
    buckets: tuple[int, ...]


class InstallVersion(Struct, frozen=True):
    """All buckets of ``version`` are here: the step before it is complete everywhere."""

    version: int


WorkerEffect = Sum | Release | Compute | Push | PullBuckets | InstallVersion
