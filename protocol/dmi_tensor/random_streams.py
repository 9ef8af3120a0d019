"""Every leaf draws from its own random streams: a function of seed, step and leaf, wherever it is computed."""

import hashlib
import random

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


def sow_leaf(seed: int, step: int, leaf: int) -> None:
    """Seed for one leaf of one step."""
    sow(derive("leaf", seed, step, leaf))


def permutation(seed: int, epoch: int, samples: int) -> torch.Tensor:
    """The order of ``samples`` samples in an epoch: int64, shape (samples,)."""
    generator = torch.Generator().manual_seed(derive("shuffle", seed, epoch))
    return torch.randperm(samples, generator=generator)
