"""What may change the bits of a result on one host and not on another, told before the first step."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from dmi_tensor.buckets import Buckets

_SAMPLES = 64
"""How many samples of a data set that is no plain tensor are looked at."""


def machine() -> list[tuple[str, str]]:
    """The torch build, the processor's capability and the number of threads."""
    return [
        ("torch build", torch.__version__),
        ("CPU capability", torch.backends.cpu.get_cpu_capability()),
        ("torch threads", str(torch.get_num_threads())),
    ]


def weights(buckets: Buckets) -> tuple[str, str]:
    """The digest of all buckets as they are."""
    digest = hashlib.sha256()
    for bucket in buckets.layout.buckets:
        digest.update(_bytes(buckets.bucket(bucket.index)))
    return "initial weights", digest.hexdigest()[:16]


def data(dataset: Any) -> list[tuple[str, str]]:
    """The length of a map-style data set, and a digest: of all of it when it is a ``TensorDataset``, else of 64
    evenly spaced samples."""
    length = len(dataset)
    digest = hashlib.sha256()
    if isinstance(dataset, torch.utils.data.TensorDataset):
        for tensor in dataset.tensors:
            digest.update(_bytes(tensor))
    else:
        for place in sorted({length * k // _SAMPLES for k in range(_SAMPLES)} if length else ()):
            _feed(digest, dataset[place])
    return [("length of the data", str(length)), ("digest of the data", digest.hexdigest()[:16])]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(_bytes(value))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
