"""Inputs that travel: those of a slice in one file, as they are read on the submitter's host. Of a picture its file is in it, of
a table each row."""

import struct
from collections.abc import Container, Iterator
from pathlib import Path

from dmi.infer import carried
from dmi.infer.inputs import Given, Pack

_LENGTH = struct.Struct("<Q")


def written(inputs: Iterator[Given]) -> Iterator[bytes]:
    """The file's bytes, an input at a time. The same inputs give the same bytes."""
    for given in inputs:
        data = carried.packed([given])
        yield _LENGTH.pack(len(data))
        yield data


def unpacked(pack: Pack, start: int, stop: int, skip: Container[int] = ()) -> Iterator[Given]:
    """Inputs ``start`` to ``stop``; those to ``skip`` have no value."""
    with Path(pack.path).open("rb") as file:
        for place in range(pack.first, stop):
            head = file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return
            (length,) = _LENGTH.unpack(head)
            if place < start:
                file.seek(length, 1)
                continue
            (given,) = carried.unpacked(file.read(length))
            yield Given(given.id, None) if place in skip else given
