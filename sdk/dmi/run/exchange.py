"""The seam between a ``Run`` and what computes with it: one process (``plain.py``) or a mesh (``mesh_exchange.py``).

Whoever runs the script inside a job provides its exchange before the script starts; otherwise a run is plain.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from msgspec import Struct
from torch import Tensor

from dmi.errors import UsageError
from dmi_protocol.training.layout import Definition
from dmi_tensor.buckets import Buckets
from dmi_tensor.tree_sum import Share


class Begun(Struct, frozen=True):
    """How a step begins, the same on every worker. ``hyper`` are the groups' hyperparameters, ``written`` is the digest of the
    buffers that the script wrote since the step before, ``data`` says for people what the batch is taken from. ``only_lead``: the
    lead has all leaves."""

    step: int
    leaf_sizes: tuple[int, ...]
    hyper: bytes
    written: bytes = b""
    data: str = ""
    only_lead: bool = False


class Exchange(Protocol):
    """What a run needs of the others. Every call that waits has a deadline, and raises ``dmi.errors.DmiError`` then."""

    @property
    def worker(self) -> int:
        """This worker's number."""
        ...

    @property
    def is_lead(self) -> bool:
        """Does this worker print and evaluate?"""
        ...

    @property
    def leaves(self) -> int | None:
        """The leaves that the submission fixed; None when it left that to the script."""
        ...

    @property
    def threads(self) -> int | None:
        """The torch threads that the job fixed; None when it left that to the script."""
        ...

    @property
    def is_joiner(self) -> bool:
        """Do others train already? Then ``open`` comes in where they stand, and ``welcome`` says where that is."""
        ...

    def resume(self) -> bytes | None:
        """What the checkpoint that the job goes on from keeps of the run (``extra``); None when it begins."""
        ...

    def welcome(self) -> bytes | None:
        """What the lead keeps of the run where a joiner comes in, empty before the first step; None for all others."""
        ...

    def open(self, definition: Definition, buckets: Buckets, fingerprint: Sequence[tuple[str, str]], kept: int) -> int:
        """Meet the others, once, before the first step. ``buckets`` hold version 0 and are the run's own: ``install``
        writes them. ``kept`` tensors of its size the optimizer keeps for each parameter. Gives the step at which the job
        stands, whose version is then in ``buckets``."""
        ...

    def begin(self, begun: Begun, extra: Callable[[], bytes]) -> None:
        """The run has version ``begun.step`` in place. ``extra`` gives what the run itself would have to remember, for
        joiners."""
        ...

    def expected_leaves(self) -> tuple[int, ...]:
        """The leaves of a step that fall to this worker, as things are."""
        ...

    def next_leaf(self) -> int | None:
        """A further leaf of this step for this worker; None once the step is complete everywhere. May wait."""
        ...

    def contribute(self, leaf: int, shares: Mapping[int, Share]) -> None:
        """What ``leaf`` gives to each live bucket, already weighted; a bucket that is not there is absent.

        The shares belong to the exchange from now on."""
        ...

    def take(self, bucket: int) -> Share:
        """Room for what a leaf gives to ``bucket``: a tensor with old contents, and zeros between the segments (none in
        the metrics bucket), and weights of 0.0."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """The means of what the leaves of the step reported. Only after ``next_leaf`` gave None."""
        ...

    def value(self) -> bytes:
        """What the lead contributed as its value. Only after ``next_leaf`` gave None."""
        ...

    def begin_again(self, why: str) -> NoReturn:
        """End this process: another one of this worker does again what it cannot go on with."""
        ...

    def install(self) -> None:
        """Write the next version into the run's buckets. Only after ``next_leaf`` gave None."""
        ...

    def progress(self, steps: int | None, samples: int, loss: float | None) -> None:
        """For people: a step of ``samples`` samples is done, of ``steps`` steps if that is known."""
        ...

    def checkpoint(self, step: int, extra: Callable[[], bytes]) -> None:
        """Keep version ``step`` with its optimizer state; ``extra`` gives what the run itself must remember."""
        ...

    def checkpointed(self, step: int, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """A checkpoint of version ``step`` was wished for: who follows the job by its checkpoints may get ``tensors``."""
        ...

    def publish(self, name: str, step: int, tensors: Mapping[str, Tensor], model: str, inputs: Sequence[str]) -> None:
        """Make ``tensors`` a version of the model ``name``, which ``model`` makes. Raises ``UsageError`` and ``OSError``."""
        ...

    def optimizer_state(self) -> dict[str, object]:
        """torch's ``state_dict`` of the optimizer at the version in place."""
        ...

    def close(self, step: int, extra: bytes, kept: tuple[tuple[str, str], ...]) -> None:
        """The script is over after ``step`` steps; ``kept`` are digests of what it keeps, by name: where they differ between the
        workers that is told. Returns when the final state is safe."""
        ...


JOB = "DMI_JOB"
"""The environment variable that has the job's id in whatever a job's script starts."""

_provider: list[tuple[int, Callable[[], Exchange]]] = []


def provide(provider: Callable[[], Exchange]) -> None:
    """From now on ``dmi.init`` in this process takes part in a job, through what ``provider`` makes."""
    _provider[:] = [(os.getpid(), provider)]


def provided() -> Exchange | None:
    """The job's exchange, None in a plain run. Raises ``UsageError`` in a process that a job's script has started."""
    if _provider and _provider[0][0] == os.getpid():
        return _provider[0][1]()
    if _provider or JOB in os.environ:
        raise UsageError(
            "a process that a job's script has started trains nothing by itself: call dmi.init in the script alone, below "
            '`if __name__ == "__main__":` where it starts processes that import it'
        )
    return None
