"""What workers and parameter servers of one job say to each other, from role process to role process.

None of it passes through a daemon.
Each message is one envelope; those that carry tensors are followed by one raw frame for each spec in ``tensors``, in
order, unless ``region`` says that the bytes lie in memory that both processes have mapped. Step ``t`` turns version
``t`` of the parameters into version ``t + 1``. A message names the generation it was sent under. What workers send and are
shown has the same bits in every generation of one life, so only what servers say to each other is fenced by it.
"""

from typing import Literal

from msgspec import Struct

from dmi_protocol.tensor_spec import TensorSpec

Refusal = Literal["step", "version", "peer"]


class Region(Struct, frozen=True):
    """Bytes in shared memory: ``segment`` was offered in ``Hello`` or ``Welcome``, and both ends have it mapped."""

    segment: str
    offset: int


class Fingerprint(Struct, frozen=True):
    """What may change the bits of a result: ``(field, value)`` pairs, the same fields on every worker."""

    fields: tuple[tuple[str, str], ...]


class Hello(Struct, frozen=True, tag="exchange-hello"):
    """A worker opens the conversation about a shard with its primary. ``definition`` describes layout, optimizer and
    clipping.

    ``shared`` names a shared memory segment of ``shared_bytes`` that this worker writes its sums into, when server and
    worker are of one node; the worker removes the name as soon as it is welcomed.
    """

    generation: int
    shard: int
    worker: int
    fingerprint: Fingerprint
    definition: bytes
    shared: str | None = None
    shared_bytes: int = 0


class AskResume(Struct, frozen=True, tag="exchange-ask-resume"):
    """A worker of a job that goes on from a checkpoint asks any primary what that keeps of the run itself."""

    generation: int
    shard: int


class Resume(Struct, frozen=True, tag="exchange-resume"):
    """One frame follows: what the lead gave with ``Checkpoint`` (place in the data, schedulers, state)."""

    generation: int


class Initial(Struct, frozen=True, tag="exchange-initial"):
    """From the lead worker: ``bucket`` at version 0."""

    generation: int
    shard: int
    bucket: int
    tensors: tuple[TensorSpec, ...]


class Welcome(Struct, frozen=True, tag="exchange-welcome"):
    """The server stands at ``step`` and has all that it needs. ``shared`` as in ``Hello``, written by the server.

    A worker that came later gets one frame, what the lead keeps of the run at ``step``."""

    generation: int
    shard: int
    step: int
    shared: str | None = None
    shared_bytes: int = 0


class Declined(Struct, frozen=True, tag="exchange-declined"):
    """Legal, but impossible now. ``text`` is one line for people, made from the reason's fields by the server."""

    generation: int
    kind: Refusal
    text: str


class Begin(Struct, frozen=True, tag="exchange-begin"):
    """The worker has installed version ``step`` and starts on it. ``hyper`` are the groups' hyperparameters, encoded;
    equal on all workers, as ``leaf_sizes`` are, and ``written``, a digest of the buffers that the script wrote since the step
    before, and ``data``, which says for people what the batch is taken from. One frame follows from the lead, while a worker
    waits to come in: what it keeps of the run at ``step``."""

    generation: int
    shard: int
    step: int
    leaf_sizes: tuple[int, ...]
    hyper: bytes
    written: bytes = b""
    data: str = ""


class Contribution(Struct, frozen=True, tag="exchange-contribution"):
    """The weighted sum of one aligned subtree of leaves, for one bucket.

    ``tensors`` is empty when no leaf of the subtree has anything for this bucket: an explicit *absent*.
    ``detail`` says which segments of the bucket are present; the format is the tensor package's.
    """

    generation: int
    shard: int
    step: int
    bucket: int
    first_leaf: int
    leaves: int
    tensors: tuple[TensorSpec, ...]
    detail: bytes = b""
    region: Region | None = None


class Show(Struct, frozen=True, tag="exchange-show"):
    """``bucket`` at ``version``. It is whole, and may be installed once all buckets of that version are shown. A bucket that
    comes without its tensor is as in the version before, which the worker has in place."""

    generation: int
    shard: int
    version: int
    bucket: int
    tensors: tuple[TensorSpec, ...]
    detail: bytes = b""
    region: Region | None = None


class Pull(Struct, frozen=True, tag="exchange-pull"):
    """Show me ``buckets`` at ``version``, if it is still readable; a worker that came in mid-step asks this."""

    generation: int
    shard: int
    version: int
    buckets: tuple[int, ...]


class Outstanding(Struct, frozen=True, tag="exchange-outstanding"):
    """The answer to a ``Pull`` of what is not whole yet: for each such bucket the subtrees, as ``(first, leaves)``, whose
    sums have come in ``step``. What a worker has sent before and is not among them was lost on the way."""

    generation: int
    shard: int
    step: int
    held: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


class Lacking(Struct, frozen=True, tag="exchange-lacking"):
    """The answer to a repeated ``Hello`` of the lead: these buckets have no values yet, though what it sent before has been
    taken in."""

    generation: int
    shard: int
    buckets: tuple[int, ...]


class Norms(Struct, frozen=True, tag="exchange-norms"):
    """Server to server: the squared norms of the step's sums, as ``(bucket, square)`` in bucket order. Who ``asks`` has not
    heard those of all others."""

    generation: int
    step: int
    shard: int
    squares: tuple[tuple[int, float], ...]
    asks: bool = False


class Checkpoint(Struct, frozen=True, tag="exchange-checkpoint"):
    """Write version ``step`` with its optimizer state. To shard 0 one frame follows: what the run itself keeps (place in the
    data, schedulers, state)."""

    generation: int
    shard: int
    step: int


class AskState(Struct, frozen=True, tag="exchange-ask-state"):
    """The lead wants the optimizer's state of these ``buckets`` at version ``step``: a few at a time, and those that do not come
    again."""

    generation: int
    shard: int
    step: int
    buckets: tuple[int, ...]


class State(Struct, frozen=True, tag="exchange-state"):
    """The optimizer's state of one bucket: ``state`` names the ``tensors`` and has what is no tensor, as in ``Copy``; ``hyper``
    are the hyperparameters of the step before, empty when there was none."""

    generation: int
    shard: int
    step: int
    bucket: int
    tensors: tuple[TensorSpec, ...]
    state: bytes
    hyper: bytes


class Finish(Struct, frozen=True, tag="exchange-finish"):
    """The worker's script is over after ``step`` steps: write the final part, with what ``Checkpoint`` has in its frame. ``kept``
    are names of what the script keeps beside the model, each with a digest: it should be the same on every worker."""

    generation: int
    shard: int
    step: int
    kept: tuple[tuple[str, str], ...] = ()


class Finished(Struct, frozen=True, tag="exchange-finished"):
    """The shard's final part is durable: the worker may return."""

    generation: int
    shard: int


class Beat(Struct, frozen=True, tag="exchange-beat"):
    """I am here; answered by the same. A worker's thread sends it while its script computes."""

    generation: int


class Fill(Struct, frozen=True, tag="exchange-fill"):
    """From a primary to a server that is to have a copy of ``shard``: what it is a copy of. Buckets follow."""

    generation: int
    shard: int
    definition: bytes
    fingerprint: tuple[tuple[str, str], ...]


class Copy(Struct, frozen=True, tag="exchange-copy"):
    """One bucket of a shard at ``version``, with its optimizer's state.

    The first of ``tensors`` are the values (none for the metrics bucket, whose ``detail`` says all); then come the tensors
    of the state, ``state`` names them and has what is no tensor; the format is the tensor package's."""

    generation: int
    shard: int
    version: int
    bucket: int
    tensors: tuple[TensorSpec, ...]
    state: bytes
    hyper: bytes
    detail: bytes = b""


class Replicate(Struct, frozen=True, tag="exchange-replicate"):
    """The finished sum of a bucket, from the primary to a copy: apply it, as the primary does. No tensors: *absent*."""

    generation: int
    shard: int
    step: int
    bucket: int
    tensors: tuple[TensorSpec, ...]
    hyper: bytes
    norms: tuple[tuple[int, float], ...]
    detail: bytes = b""


class Replicated(Struct, frozen=True, tag="exchange-replicated"):
    """The copy has ``bucket`` at ``version``."""

    generation: int
    shard: int
    version: int
    bucket: int


class AskCopy(Struct, frozen=True, tag="exchange-ask-copy"):
    """From a primary to a copy whose word is awaited: what do you have? All that was sent before has been taken in, or is
    lost."""

    generation: int
    shard: int


class HasCopy(Struct, frozen=True, tag="exchange-has-copy"):
    """The answer: ``(bucket, version)`` of all that the copy has. Bucket -1 stands for ``Fill``."""

    generation: int
    shard: int
    versions: tuple[tuple[int, int], ...]


ParameterMessage = (
    Hello
    | AskResume
    | Resume
    | Initial
    | Welcome
    | Declined
    | Begin
    | Contribution
    | Show
    | Pull
    | Outstanding
    | Lacking
    | Norms
    | Checkpoint
    | AskState
    | State
    | Finish
    | Finished
    | Fill
    | Copy
    | Replicate
    | Replicated
    | AskCopy
    | HasCopy
    | Beat
)
