"""What waits for a disk that takes nothing: the writes that were refused, and the work that may not overtake them.

Every shell uses it: a refused write is held with all that stood after it and tried again as a whole, and the peer is told
with ``DiskFailed``, so that it promises nothing meanwhile.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from dmi_protocol.effects import (
    Answer,
    Changed,
    DropBlob,
    Effect,
    Explain,
    PersistEntries,
    PersistSnapshot,
    PersistVote,
    Redial,
    Retire,
    Send,
)
from dmi_protocol.events import BlobArrived, Event, RoleHappened
from dmi_protocol.messages.roles import Written
from dmi_protocol.reasons import DiskFull

RETRY_MS = 1_000
WRITES = (PersistVote, PersistEntries, PersistSnapshot)
_HARMLESS = (Send, Answer, Changed, Explain, Redial, Retire)
"""Done at once; all else keeps its order behind what is not durable."""


class DeferredEffects:
    """Of the node that is called ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._effects: list[Effect] = []

    @property
    def writes(self) -> list[Effect]:
        """What is to be made durable, all of it or nothing."""
        return [effect for effect in self._effects if isinstance(effect, WRITES)]

    def hold(self, cause: str, effects: Sequence[Effect]) -> list[Effect]:
        """The effects of a turn while the disk takes nothing for this ``cause``; gives those to be done now.

        What was said in a turn whose writes are refused may be a promise, so it is dropped, as a network may. Whoever waits
        for a yes that is not durable hears why there is none.
        """
        is_promise = any(isinstance(effect, WRITES) for effect in effects)
        self._effects += [effect for effect in effects if not isinstance(effect, _HARMLESS)]
        harmless = [e for e in effects if isinstance(e, _HARMLESS) and not (is_promise and isinstance(e, Send))]
        return [self._denied(effect, cause) if isinstance(effect, Answer) else effect for effect in harmless]

    def _denied(self, answer: Answer, cause: str) -> Answer:
        return answer if answer.refusal is not None else replace(answer, value="", refusal=DiskFull(self._name, cause))

    def happened(self, event: Event) -> None:
        """A blob that has come since is not dropped by what was decided before."""
        if not self._effects:
            return
        blob = None
        if isinstance(event, BlobArrived):
            blob = event.blob
        elif isinstance(event, RoleHappened) and isinstance(event.event, Written):
            blob = event.event.blob
        if blob is not None:
            self._effects = [effect for effect in self._effects if effect != DropBlob(blob)]

    def release(self) -> list[Effect]:
        """The writes are durable: all that waited for them, in its order."""
        effects, self._effects = self._effects, []
        return [effect for effect in effects if not isinstance(effect, WRITES)]
