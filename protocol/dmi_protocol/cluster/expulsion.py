"""Are we a member no more? Told by a member, read in our own state, or seen in that nobody takes our key.

A node that was expelled is unlinked by the others at once. Whoever missed their last word (it was down, or the link was)
finds out by being turned away. A connection that was open before then stays open without anything being heard on it, so
after a while of silence it is dialled anew, and that is refused.
"""

from collections.abc import Mapping, Set

from dmi_protocol.cluster.command import Command, Remove
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.effects import Effect, Redial, Retire
from dmi_protocol.events import Asked, Connected, Disconnected, Event, Received, TurnedAway
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.messages.control import Expelled, Introduced
from dmi_protocol.reasons import Reason, WasExpelled, WasTurnedAway

PATIENCE_MS = 10_000
"""So long nobody must take our key, or be heard. An admission that was only on its way has arrived by then."""


class Expulsion:
    """See the module. ``happened`` takes every event, and ``look`` says at most once that it is over."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._was_member = False
        self._is_over = False
        self._told: Reason | None = None
        self._leaves_until: Instant | None = None
        """Somebody at this very node wishes it to leave: no news then."""
        self._connected: set[NodeId] = set()
        self._refused_by: set[NodeId] = set()
        self._refused_at: Instant | None = None
        """Since when most of the others turn us away, and no coordinator is heard."""
        self._heard_at: Instant | None = None

    def happened(self, now: Instant, event: Event, state: ClusterState | None) -> None:
        """Take in what an event tells about it."""
        match event:
            case Received(_, message):
                self._heard_at = now
                if isinstance(message, Expelled) and self._proves(message, state):
                    self._told = WasExpelled()
            case Connected(peer):
                self._connected.add(peer)
                self._refused_by.discard(peer)
                self._heard_at = now
            case Disconnected(peer):
                self._connected.discard(peer)
            case TurnedAway(peer):
                self._connected.discard(peer)
                self._refused_by.add(peer)
            case Asked(_, command, within_ms) if self._is_own_wish(command):
                self._leaves_until = after(now, within_ms)

    def _is_own_wish(self, command: Command) -> bool:
        return isinstance(command, Remove) and command.node == self._me

    def _proves(self, message: Expelled, state: ClusterState | None) -> bool:
        """It counts when it is newer than what we know ourselves: whoever is behind does not know us yet."""
        return state is not None and self._me in state.members and state.applied < message.applied

    @property
    def is_refused(self) -> bool:
        """Does anybody not take our key? Only then it matters who is led."""
        return bool(self._refused_by)

    def deadline(self) -> Instant | None:
        """When there is something to conclude."""
        if self._is_over:
            return None
        concludes = None if self._refused_at is None else after(self._refused_at, PATIENCE_MS)
        if self._leaves_until is not None and (self._told or concludes is not None):
            concludes = max(self._leaves_until, concludes or self._leaves_until)
        redials = self._redial_at()
        return redials if concludes is None else earliest(concludes, redials)

    def _redial_at(self) -> Instant | None:
        return after(self._heard_at, PATIENCE_MS) if self._connected and self._heard_at is not None else None

    def look(
        self,
        now: Instant,
        state: ClusterState | None,
        others: Mapping[NodeId, Introduced],
        voters: Set[NodeId],
        *,
        is_led: bool,
    ) -> list[Effect]:
        """What follows: ``Retire`` once, and meanwhile silent connections anew. ``voters`` are those of the log; who is
        ``is_led`` by a coordinator is a member."""
        if self._is_over:
            return []
        is_member = state is not None and self._me in state.members
        if self._was_member and not is_member:
            self._told = WasExpelled()
        self._was_member = self._was_member or is_member
        reason = self._told
        if reason is None and self._refused_by and not is_led:
            reason = self._turned_away(now, self._refused_by & others.keys(), others, voters - {self._me})
        elif reason is None:
            self._refused_at = None
        if reason is not None and (self._leaves_until is None or now >= self._leaves_until):
            self._is_over = True
            return [Retire(reason)]
        due = self._redial_at()
        return [] if due is None or now < due else self._redial()

    def _turned_away(
        self, now: Instant, by: Set[NodeId], others: Mapping[NodeId, Introduced], voters: Set[NodeId]
    ) -> Reason | None:
        """A minority may not have heard of our admission yet. Most of the voters, or of all that we know, have, or would
        agree on it: of what a disk remembers the voters are the newest, and may be empty."""
        is_most = 2 * len(by & voters) > len(voters) or 2 * len(by) > len(others)
        if not by or not is_most:
            self._refused_at = None
            return None
        self._refused_at = now if self._refused_at is None else self._refused_at
        if now < after(self._refused_at, PATIENCE_MS):
            return None
        return WasTurnedAway(tuple(sorted(others[node].name for node in by)))

    def _redial(self) -> list[Effect]:
        silent, self._connected = sorted(self._connected), set()
        return [Redial(node) for node in silent]
