"""Inputs of a batch inference: all of them, and one as it was read."""

from typing import Any, NamedTuple


class Bad(Exception):  # noqa: N818 (an input that cannot be used: it becomes a row, and is raised by functions of the user too)
    """This input cannot be used. The text says why, in a line."""


class Listing(NamedTuple):
    """All inputs. ``names`` are the ids where they are known before anything is read (images), and else empty; ``starts`` are
    places in the file for every ``stride``-th input, where seeking needs them; ``files`` those of a table and their rows."""

    total: int
    names: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    stride: int = 1
    files: tuple[tuple[str, int], ...] = ()


class Given(NamedTuple):
    """An input as it was read: ``value`` is an image, an array, or a dict of columns, or why there is none."""

    id: Any
    value: Any


class Pack(NamedTuple):
    """A file at ``path`` with the inputs from ``first`` on; see ``pack.py``."""

    path: str
    first: int
