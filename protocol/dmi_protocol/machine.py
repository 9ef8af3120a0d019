"""The one shape of every state machine."""

from typing import Protocol

from dmi_protocol.effects import Effect
from dmi_protocol.events import Event
from dmi_protocol.instant import Instant


class Machine(Protocol):
    """Decides. Time and chance are arguments, work is a return value.

    The shell must call :meth:`step` with every event, in order and with a ``now`` that never goes back; must do the
    effects in list order; must let nothing that stands after a ``Persist*`` effect leave before that write is durable;
    and must deliver :class:`~dmi_protocol.events.Ticked` once ``now`` has reached :meth:`deadline`.
    """

    def step(self, now: Instant, event: Event) -> list[Effect]:
        """Take one event in and give the work that follows from it."""
        ...

    def deadline(self) -> Instant | None:
        """When this machine wants a ``Ticked`` if nothing else happens; ``None`` for never."""
        ...

    def check(self) -> None:
        """Assert the invariants. Called after each step in simulations and tests."""
        ...
