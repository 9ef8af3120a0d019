"""Finding a coordinator that is a stranger to us.

A host that was away may come back to a mesh whose coordinator became a member meanwhile: it would not listen to it, so
it would never hear of it. Any member that both know can introduce them.
"""

from collections.abc import Set

from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.effects import Send
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.control import Coordinated, Introduced, Seeking

PATIENCE_MS = 1_000
"""An election is over by then."""


class Search:
    """Asks one member after the other, for as long as no coordinator can be heard."""

    def __init__(self) -> None:
        self._ask_at: Instant | None = None
        self._asked = 0

    def deadline(self) -> Instant | None:
        """When somebody is asked."""
        return self._ask_at

    def look(self, now: Instant, *, is_lost: bool, members: Set[NodeId]) -> list[Send]:
        """Ask, when it is time to. ``is_lost``: no coordinator is heard, or it does not hear us."""
        if not is_lost or not members:
            self._ask_at = None
            return []
        if self._ask_at is None or now < self._ask_at:
            self._ask_at = self._ask_at or after(now, PATIENCE_MS)
            return []
        self._ask_at = after(now, PATIENCE_MS)
        self._asked += 1
        return [Send(sorted(members)[self._asked % len(members)], Seeking())]


def answer(seeker: NodeId, state: ClusterState | None, leader: NodeId | None) -> list[Send]:
    """What we can tell a member that seeks; nothing when we are lost ourselves."""
    found = state.members.get(leader) if state is not None and leader is not None else None
    if state is None or found is None:
        return []
    introduced = Introduced(found.node, found.name, found.address, found.public_key)
    return [Send(seeker, Coordinated(introduced, state.applied))]
