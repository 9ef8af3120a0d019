"""An array in a ``.npy`` file; only what is asked for is read."""

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Listing
from dmi.infer.place import Place


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    begin: int
    """Where the numbers begin in the file."""


def list_inputs(where: Place, config: Config) -> Listing:
    """The first dimension counts."""
    with where.open() as file:
        layout = _layout(where, file)
    if not layout.shape:
        raise UsageError(f"{where} holds one number; its first dimension must count the inputs")
    rows = layout.shape[0]
    if where.size() < layout.begin + rows * _row_bytes(layout):
        raise UsageError(f"{where} is cut short: it has fewer numbers than its first line says")
    return Listing(rows)


def _layout(where: Place, file: IO[bytes]) -> _Layout:
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(file)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{where} is no .npy file that can be read: {str(error).splitlines()[0]}") from error
    if dtype.hasobject:
        raise UsageError(f"{where} holds Python objects, which are not read: save an array of numbers")
    if is_fortran and len(shape) > 1:
        raise UsageError(f"{where} is in Fortran order: save numpy.ascontiguousarray of it")
    return _Layout(shape, dtype, file.tell())


def _row_bytes(layout: _Layout) -> int:
    return int(np.prod(layout.shape[1:], dtype=np.int64)) * int(layout.dtype.itemsize)


def read(where: Place, config: Config, listing: Listing, start: int, stop: int) -> Iterator[Given]:
    """See the package."""
    with where.open() as file:
        layout = _layout(where, file)
        size = _row_bytes(layout)
        file.seek(layout.begin + start * size)
        for place in range(start, min(stop, layout.shape[0])):
            data = file.read(size)
            if len(data) < size:
                return
            yield Given(place, np.frombuffer(data, layout.dtype).reshape(layout.shape[1:]))
