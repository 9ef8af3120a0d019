"""Where samples come from: a data set, the batches of one pass over it, and how their samples become tensors."""

import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from dmi.errors import UsageError
from dmi_tensor.random_streams import permutation, set_aside, sow_order

Collate = Callable[[list[Any]], Any]


class Source(Struct, frozen=True):
    """A map-style data set and how it is read. ``sampler`` gives the places of samples, or of whole batches; without one the
    order is a function of seed and epoch where it is to be shuffled. ``batch_size`` is None where the sampler gives batches."""

    dataset: Any
    batch_size: int | None
    shuffle: bool = False
    drop_last: bool = False
    collate_fn: Collate | None = None
    sampler: Iterable[Any] | None = None
    workers: int = 0
    prefetch: int = 8

    def check(self, leaves: int) -> None:
        """Raise ``UsageError`` for what cannot be dealt to leaves."""
        dataset, name = self.dataset, type(self.dataset).__name__
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise UsageError(
                f"{name} has no length and no indices, so its samples cannot be dealt to leaves; pass a map-style dataset "
                "(__len__ and __getitem__) to run.steps"
            )
        if not len(dataset):
            raise UsageError(f"the {name} is empty: it has no sample")
        if self.batch_size is not None and self.batch_size < leaves:
            raise UsageError(
                f"a batch of {self.batch_size} samples cannot fill {leaves} leaves; raise batch_size or pass fewer leaves to "
                "dmi.init"
            )
        if self.workers < 0 or self.prefetch < 1:
            raise UsageError(
                f"workers must be 0 or more and prefetch 1 or more, not {self.workers} and {self.prefetch}"
            )

    def check_whole(self) -> None:
        """Raise ``UsageError`` where not every sample would be evaluated once."""
        if self.sampler is not None or self.drop_last:
            raise UsageError("an evaluation takes every sample once: leave sampler and drop_last out")
        if self.batch_size is None:
            raise UsageError(
                "batch_size is missing: how many samples are evaluated at a time, on all workers together?"
            )

    def batches(self, seed: int, epoch: int) -> "Batches":
        """Those of one pass. Raises ``UsageError`` where there is none, or a sampler does not follow the run's seed."""
        told = ""
        if self.sampler is not None:
            drawn = _drawn(self.sampler, seed, epoch)
            told = f", order of the sampler {hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]}"
            if any(isinstance(each, list) for each in drawn):
                return Batches(self._whole(drawn), told)
            order: Sequence[Any] = drawn
        elif self.shuffle:
            order = permutation(seed, epoch, len(self.dataset)).tolist()
        else:
            order = range(len(self.dataset))
        size = self.batch_size
        if size is None:
            raise UsageError("batch_size is missing: how many samples has a step?")
        cut = [order[start : start + size] for start in range(0, len(order), size)]
        if self.drop_last and cut and len(cut[-1]) < size:
            cut.pop()
        if not cut:
            why = (
                f"make no full batch of {size}, and drop_last drops the rest" if order else "are what the sampler gives"
            )
            raise UsageError(f"{len(order)} samples {why}: no step is left; leave drop_last out, or lower batch_size")
        return Batches(cut, told)

    def _whole(self, drawn: list[Any]) -> list[Any]:
        """Batches that a sampler gives."""
        if not all(isinstance(each, list) and each for each in drawn):
            raise UsageError("the sampler gives batches and something else, or an empty batch: let it give one kind")
        if self.batch_size is not None or self.drop_last:
            raise UsageError("the sampler gives whole batches: leave batch_size and drop_last out")
        return drawn

    def fetch(self, indices: Sequence[Any]) -> Any:
        """The samples at ``indices`` as one batch, as torch's ``DataLoader`` would make it. Raises ``UsageError`` for samples
        that make none."""
        dataset = self.dataset
        if type(dataset) is TensorDataset and self.collate_fn is None:
            chosen = torch.tensor(indices)
            return [tensor[chosen] for tensor in dataset.tensors]
        many = getattr(dataset, "__getitems__", None)
        samples = [dataset[index] for index in indices] if many is None else many(list(indices))
        if self.collate_fn is not None:
            return self.collate_fn(samples)
        try:
            return default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            raise UsageError(
                f"samples of {type(dataset).__name__} make no batch ({str(error).splitlines()[0][:120]}): give them one shape, "
                "or pass collate_fn=..., which may pad them to the same length"
            ) from error


class Batches(Struct, frozen=True):
    """The places of the samples of each step. ``order`` tells of them where a sampler has chosen: on every host the same."""

    places: Sequence[Sequence[Any]]
    order: str = ""

    def smallest(self, leaves: int) -> int:
        """The samples of the batch that has the smallest leaf."""
        return min((len(batch) for batch in self.places), key=lambda size: max(1, size // leaves))


def _drawn(sampler: Iterable[Any], seed: int, epoch: int) -> list[Any]:
    """What a sampler gives in an epoch. Raises ``UsageError`` for one that gives something else when it is asked again."""
    if isinstance(sampler, DistributedSampler):
        raise UsageError(
            "DistributedSampler deals samples to processes, and the run does so itself: pass shuffle=True instead"
        )
    drawn = _places(sampler, seed, epoch)
    if drawn != _places(sampler, seed, epoch):
        raise UsageError(
            f"{type(sampler).__name__} gives another order each time it is asked: it draws from a generator of its own, and so "
            "depends on who asks it; let it draw from torch, numpy or random, which are seeded for each epoch (generator=None)"
        )
    return drawn


def _places(sampler: Iterable[Any], seed: int, epoch: int) -> list[Any]:
    with set_aside():
        sow_order(seed, epoch)
        return [_place(each) for each in sampler]


def _place(each: Any) -> Any:
    """An index as an int where it is one; a whole batch of them as a list."""
    if isinstance(each, list | tuple) or (isinstance(each, torch.Tensor | np.ndarray) and each.ndim > 0):
        return [_place(inner) for inner in each]
    try:
        return operator.index(each)
    except TypeError:
        return each


def understood(
    given: Any,
    batch_size: int | None,
    *,
    shuffle: bool | None,
    drop_last: bool,
    collate_fn: Collate | None,
    sampler: Iterable[Any] | None,
    workers: int,
    prefetch: int,
) -> Source:
    """What ``run.steps`` was given; a ``DataLoader`` in place of the data set is taken for what it was made of. Raises
    ``UsageError`` for what cannot be kept."""
    if isinstance(given, DataLoader):
        if (shuffle, drop_last, collate_fn, sampler, workers) != (None, False, None, None, 0):
            raise UsageError(
                "a DataLoader has its own shuffle, drop_last, collate_fn, sampler and num_workers: give them there, or pass "
                "loader.dataset here"
            )
        return _of_loader(given, batch_size)
    if sampler is not None and shuffle:
        raise UsageError("a sampler decides the order: leave shuffle out, or the sampler")
    is_shuffled = sampler is None and shuffle is not False
    return Source(given, batch_size, is_shuffled, drop_last, collate_fn, sampler, workers, prefetch)


def _of_loader(loader: DataLoader[Any], batch_size: int | None) -> Source:
    if loader.generator is not None:
        raise _unkept("generator", "the order follows the run's seed; leave it out")
    if loader.worker_init_fn is not None:
        raise _unkept("worker_init_fn", "random streams are seeded for each leaf; leave it out")
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise _unkept("batch_size=None or an IterableDataset", "pass a map-style dataset itself")
    if batch_size is not None and loader.batch_size is not None and batch_size != loader.batch_size:
        raise UsageError(
            f"the DataLoader has batch_size={loader.batch_size} and run.steps {batch_size}: leave one of them out"
        )
    collate = None if loader.collate_fn in {default_collate, default_convert} else loader.collate_fn
    is_shuffled, chosen = _order_of(loader)
    return Source(
        loader.dataset,
        loader.batch_size,
        is_shuffled,
        loader.drop_last,
        collate,
        chosen,
        loader.num_workers,
        loader.prefetch_factor or 8,
    )


def _order_of(loader: DataLoader[Any]) -> tuple[bool, Iterable[Any] | None]:
    """Is it shuffled, and what else decides its order?"""
    own = loader.sampler
    if loader.batch_size is None:  # it was given batches
        return False, loader.batch_sampler
    if type(own) is SequentialSampler:
        return False, None
    if type(own) is RandomSampler and not own.replacement and own.num_samples == len(loader.dataset):  # type: ignore[arg-type]
        return True, None
    return False, own


def _unkept(setting: str, instead: str) -> UsageError:
    return UsageError(
        f"a DataLoader with {setting} cannot be kept as it is: {instead}; or pass loader.dataset and batch_size"
    )
