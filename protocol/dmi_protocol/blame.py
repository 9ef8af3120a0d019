"""What a machine was at when it failed, and what is left alone from then on.

A machine that raises ends its daemon: that is a bug of ours. But the next life would meet the very same job, entry or event, and
end of it, too, and so would every other daemon of the mesh. So whoever goes through many things says at which of them it was
(``at``), the shell counts, and what has ended a daemon twice is given to its next life as ``SetAside``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

from msgspec import Struct, field

from dmi_protocol.codec import pack
from dmi_protocol.events import Asked, BlobArrived, BlobFailed, BlobPinned, Event, JoinAsked, Received, RoleHappened

HOSTING, PLANNING, APPLYING, TAKING = "hosting", "planning", "applying", "taking in"
"""What is done for a job on a host, for a job by the coordinator, with an entry of the log (``TERM/INDEX``), with an event (its
digest)."""
TIMES = 2
"""What has ended a daemon so often is set aside."""
_PREFIX = "while "


@contextmanager
def at(activity: str, name: str) -> Iterator[None]:
    """Whatever is raised inside happened at ``name``. The innermost counts."""
    try:
        yield
    except Exception as error:
        blame(error, activity, name)
        raise


def blame(error: Exception, activity: str, name: str) -> None:
    """Unless it is known already, and unless it is only that memory is short."""
    if subject_of(error) is None and not isinstance(error, MemoryError):
        error.add_note(f"{_PREFIX}{activity} {name}")


def subject_of(error: BaseException) -> str | None:
    """``hosting job-1``; None for what would happen at something else the next time."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_PREFIX)]
    return notes[0].removeprefix(_PREFIX) if notes else None


def digest_of(event: Event) -> str | None:
    """An event that may come again as it is; None for those that only say that something is so."""
    if not isinstance(event, Received | Asked | JoinAsked | RoleHappened | BlobArrived | BlobFailed | BlobPinned):
        return None
    return sha256(pack((type(event).__name__, event))).hexdigest()[:16]


class SetAside(Struct, frozen=True):
    """What ended this daemon again and again, by subject, each with the last line of its traceback."""

    why: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.why)

    def of(self, activity: str, name: str) -> str | None:
        """Why it is left alone; None when it is not."""
        return self.why.get(f"{activity} {name}")
