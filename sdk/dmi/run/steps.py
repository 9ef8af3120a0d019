"""Epochs' samples dealt to steps, steps' samples dealt to leaves, and the loop over the leaves of one step."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from dmi.errors import UsageError
from dmi_protocol.training.tree import leaf_range
from dmi_tensor.random_streams import permutation


class Leaves(Protocol):
    """What a step needs of its run."""

    leaves: int

    def begin_step(self, samples: int) -> None:
        """A step over a batch of ``samples`` begins."""
        ...

    def next_leaf(self) -> int | None:
        """A leaf to compute now, or None when the step is complete."""
        ...

    def begin_fetch(self, leaf: int) -> None:
        """The random streams are those in which this leaf's samples are fetched."""
        ...

    def begin_leaf(self, leaf: int) -> None:
        """Buffers and random streams are those in which this leaf is computed."""
        ...

    def end_leaf(self, leaf: int, samples: int) -> None:
        """The script has done its part."""
        ...

    def end_step(self) -> None:
        """The step is complete everywhere."""
        ...

    def repeat_step(self) -> None:
        """The step was complete before the checkpoint that the run goes on from."""
        ...


class Step:
    """One optimizer step. Iterate over it for the batches of the leaves that fall to this worker."""

    def __init__(self, run: Leaves, dataset: Any, indices: Sequence[int]) -> None:
        self._run = run
        self._dataset = dataset
        self._indices = indices
        self.metrics: dict[str, float] = {}
        """After the loop: the mean of each reported number over the step's samples, the same on every worker."""

    def __iter__(self) -> Iterator[Any]:
        samples = len(self._indices)
        self._run.begin_step(samples)
        while (leaf := self._run.next_leaf()) is not None:
            places = leaf_range(samples, self._run.leaves, leaf)
            if places:
                self._run.begin_fetch(leaf)
                batch = fetch(self._dataset, self._indices[places.start : places.stop])
                self._run.begin_leaf(leaf)
                yield batch
            self._run.end_leaf(leaf, len(places))
        self._run.end_step()


class DoneStep(Step):
    """The step after which the checkpoint was made: it has no leaves any more, and what the script does after it is done
    again."""

    def __iter__(self) -> Iterator[Any]:
        self._run.repeat_step()
        return iter(())


def fetch(dataset: Any, indices: Sequence[int]) -> Any:
    """The samples at ``indices`` as one batch, as torch's ``DataLoader`` would make it."""
    if type(dataset) is TensorDataset:
        chosen = torch.tensor(indices)
        return [tensor[chosen] for tensor in dataset.tensors]
    if hasattr(dataset, "__getitems__"):
        return default_collate(dataset.__getitems__(list(indices)))
    return default_collate([dataset[index] for index in indices])


def check_dataset(dataset: Any, batch_size: int, leaves: int) -> None:
    """Raise ``UsageError`` for what cannot be dealt to leaves."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(
            f"{type(dataset).__name__} has no length and no indices, so its samples cannot be dealt to leaves; "
            "pass a map-style dataset (__len__ and __getitem__) to run.steps"
        )
    if batch_size < leaves:
        raise UsageError(
            f"a batch of {batch_size} samples cannot fill {leaves} leaves; raise batch_size or pass fewer leaves to dmi.init"
        )


def batches(
    samples: int, batch_size: int, order: tuple[int, int] | None, *, drop_last: bool
) -> Iterator[Sequence[int]]:
    """The sample indices of each step. ``order`` is (seed, epoch) to shuffle by, None to keep the data's order."""
    places = list(range(samples)) if order is None else permutation(*order, samples).tolist()
    for start in range(0, samples, batch_size):
        batch = places[start : start + batch_size]
        if len(batch) == batch_size or not drop_last:
            yield batch


def count(samples: int, batch_size: int, *, drop_last: bool) -> int:
    """The number of steps in one pass over the data."""
    return samples // batch_size if drop_last else -(-samples // batch_size)
