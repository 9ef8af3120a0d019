"""What may change the bits of a result on one host and not on another, told before the first step."""

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmi_tensor.buckets import Buckets
from dmi_tensor.random_streams import set_aside, sow_fetch

_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.generic)
_STREAM = 0
_SAMPLES = 64
"""How many samples of a data set that is no plain tensor are looked at."""


class UnsteadyDataError(Exception):
    """A sample is another one each time it is fetched, though all random streams are the same."""


def machine() -> list[tuple[str, str]]:
    """The processor's model and capability, the torch build and the number of threads."""
    return [
        ("processor model", _processor()),
        ("torch build", str(torch.__version__)),
        ("CPU capability", torch.backends.cpu.get_cpu_capability()),
        ("torch threads", str(torch.get_num_threads())),
    ]


@cache
def _processor() -> str:
    """As the kernel names it; its architecture where the kernel names none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "cpu model")))
    return next((name for name in named if name), "") or platform.machine()


def weights(buckets: Buckets) -> tuple[str, str]:
    """The digest of all buckets as they are."""
    digest = hashlib.sha256()
    for bucket in buckets.layout.buckets:
        digest.update(_bytes(buckets.bucket(bucket.index)))
    return "initial weights", digest.hexdigest()[:16]


def data(dataset: Any) -> list[tuple[str, str]]:
    """The length of a map-style data set, and a digest: of all of it when it is a ``TensorDataset``, else of 64
    evenly spaced samples, each fetched in a random stream of its own. Raises ``UnsteadyDataError``."""
    length = len(dataset)
    digest = hashlib.sha256()
    if isinstance(dataset, torch.utils.data.TensorDataset):
        for tensor in dataset.tensors:
            digest.update(_bytes(tensor))
    else:
        with set_aside():
            places = sorted({length * k // _SAMPLES for k in range(_SAMPLES)} if length else ())
            if places and _sample(dataset, places[0]) != _sample(dataset, places[0]):
                raise UnsteadyDataError(
                    f"sample {places[0]} of {type(dataset).__name__} is another one each time it is fetched: it draws from a "
                    "generator of its own, or asks the clock, and so depends on who fetches it; draw from torch, numpy or "
                    "random, which are seeded for each leaf"
                )
            for place in places:
                digest.update(_sample(dataset, place))
    return [("length of the data", str(length)), ("digest of the data", digest.hexdigest()[:16])]


def _sample(dataset: Any, place: int) -> bytes:
    """The digest of one sample, as it is in a stream that depends on its place alone."""
    digest = hashlib.sha256()
    sow_fetch(_STREAM, 0, place)
    _feed(digest, dataset[place])
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(_bytes(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            _feed(digest, item)
    elif isinstance(value, _PLAIN):
        digest.update(repr(value).encode())
    elif hasattr(value, "__array__"):
        _feed(digest, np.asarray(value))
    else:  # its text may have an address of this process in it
        digest.update(type(value).__qualname__.encode())


def _bytes(tensor: torch.Tensor) -> bytes | memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
