"""Time as an argument: whole milliseconds on a monotonic clock that the shell reads and the machines never do."""

from typing import NewType

Instant = NewType("Instant", int)
"""A point in time, in milliseconds since an arbitrary start. Instants of two hosts cannot be compared."""


def after(now: Instant, milliseconds: int) -> Instant:
    """The instant that lies ``milliseconds`` after ``now``."""
    return Instant(now + milliseconds)


def earliest(*instants: Instant | None) -> Instant | None:
    """The first of the given instants; ``None`` stands for never."""
    first: Instant | None = None
    for instant in instants:
        if instant is not None and (first is None or instant < first):
            first = instant
    return first
