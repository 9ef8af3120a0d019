"""Every leaf draws from its own random streams: a function of seed, step and leaf, wherever it is computed."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """A seed of 63 bits that depends on all ``parts``: the head of the SHA-256 of their text."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sow(seed: int) -> None:
    """Seed torch (all devices), numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def sow_fetch(seed: int, *place: int | str) -> None:
    """Seed for fetching the samples of one leaf of one step, so that random augmentation is the leaf's, too."""
    sow(derive("fetch", seed, *place))


def sow_leaf(seed: int, *place: int | str) -> None:
    """Seed for computing one leaf of one step, whatever fetching has drawn."""
    sow(derive("leaf", seed, *place))


def sow_step(seed: int, *place: int | str) -> None:
    """Seed for what a script draws after the leaves of one step: the same whichever leaves were computed here."""
    sow(derive("step", seed, *place))


def sow_order(seed: int, epoch: int) -> None:
    """Seed for what a sampler draws in an epoch."""
    sow(derive("order", seed, epoch))


@contextmanager
def set_aside() -> Iterator[None]:
    """What is drawn meanwhile from torch's processor stream, numpy and random is not missed afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def permutation(seed: int, epoch: int, samples: int) -> torch.Tensor:
    """The order of ``samples`` samples in an epoch: int64, shape (samples,)."""
    generator = torch.Generator().manual_seed(derive("shuffle", seed, epoch))
    return torch.randperm(samples, generator=generator)
