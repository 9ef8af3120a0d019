"""Which inputs there are, and reading them. What is an input, and in which order, is a rule and no accident:

* ``images``: every regular file below the folder whose suffix (in any case) is that of an image format; hidden files and
  folders are left out, links to files are followed and links to folders are not. Ids are paths relative to the folder, in
  the order of their bytes. Or a text file with a path on every line: relative to its own folder, absolute, or an address. Ids
  are the lines, in their order.
* ``npy``: the first dimension counts the inputs; ids are 0, 1, 2, ...
* ``jsonl``: every line that is not blank; ids are line numbers from 1. ``csv``: every record after the header; ids are record
  numbers from 1. Or ids are the values of the column ``input.id``.
* ``parquet``: every row of the file, or of the ``*.parquet`` files below the folder in the order of their paths; ids are row
  numbers from 0, or the values of ``input.id``. Files of zero bytes or without rows, hidden ones and those that begin with an
  underscore are passed over; hive partitions are columns.

Each module of this package has ``list_inputs`` and ``read`` for one kind, and is loaded when that kind is asked for.
"""

import importlib
from collections.abc import Container, Iterator
from typing import Any

from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Listing, Pack
from dmi.infer.place import Place
from dmi.infer.readers.damage import told

_FIRST_ID = {"npy": 0, "jsonl": 1, "csv": 1}
_MODULES = {"images": "images", "npy": "npy", "jsonl": "jsonl", "csv": "records", "parquet": "parquet"}


def _reader(config: Config) -> Any:
    return importlib.import_module(f"dmi.infer.readers.{_MODULES[config.input.kind]}")


def _packs() -> Any:
    return importlib.import_module("dmi.infer.pack")


def listing_of(config: Config) -> Listing:
    """Look at all inputs without reading them. Raises ``UsageError`` when there are none."""
    place = Place(config.input.path)
    if not place.exists():
        raise UsageError(f"there is no {config.input.path}: input.path is where the inputs are")
    found: Listing = _reader(config).list_inputs(place, config)
    if not found.total:
        raise UsageError(f"{config.input.path} has no inputs of kind {config.input.kind}")
    return found


def read(
    config: Config, listing: Listing, start: int, stop: int, skip: Container[int] = (), pack: Pack | None = None
) -> Iterator[Given]:
    """Inputs ``start`` to ``stop``, in order, from where they are or from a ``pack``; a bad one in its place. Those to ``skip``
    are not decoded."""
    reader = _reader(config)
    found: Iterator[Given]
    if pack is not None:
        found = _packs().unpacked(pack, start, stop, skip)
        if config.input.kind == "images":
            found = (Given(name, None if data is None else reader.decoded(data, config)) for name, data in found)
    elif config.input.kind == "images":
        found = reader.read(Place(config.input.path), config, listing, start, stop, skip)
    else:  # nothing that is in a table ends a process
        where = Place(config.input.path)
        found = reader.read(where, config, listing, start, stop)
        if config.input.kind != "parquet":  # of which one part can be read without the others
            first = _FIRST_ID[config.input.kind]
            found = told(found, where, start, stop, lambda place: place + first)
    return found


def packed(config: Config, listing: Listing, start: int, stop: int) -> Iterator[bytes]:
    """A pack of the inputs ``start`` to ``stop``."""
    reader, where = _reader(config), Place(config.input.path)
    raw = reader.raw if config.input.kind == "images" else reader.read
    found: Iterator[bytes] = _packs().written(raw(where, config, listing, start, stop))
    return found
