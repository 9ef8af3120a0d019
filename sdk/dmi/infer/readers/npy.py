"""An array in a ``.npy`` file; it is mapped, so only what is asked for is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Listing


def list_inputs(path: Path, config: Config) -> Listing:
    """The first dimension counts."""
    array = _opened(path)
    if array.ndim == 0:
        raise UsageError(f"{path} holds one number; its first dimension must count the inputs")
    return Listing(len(array))


def _opened(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no .npy file that can be read: {str(error).splitlines()[0]}") from error


def read(path: Path, config: Config, listing: Listing, start: int, stop: int) -> Iterator[Given]:
    """See the package."""
    array = _opened(path)
    for place in range(start, stop):
        yield Given(place, array[place])
