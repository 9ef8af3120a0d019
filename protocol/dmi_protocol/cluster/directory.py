"""Whom this node speaks with: the members of the state, those it was told of that its state does not know yet, and for a
moment those that left by their own wish, so that they hear that they are out."""

from collections.abc import Mapping, Sequence

from dmi_protocol.address import is_address
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.effects import AllowInvitations, Effect, Link, Send, Unlink
from dmi_protocol.identity import NodeId, PublicKey, is_public_key, node_id
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.messages.control import Expelled, Introduced

FAREWELL_MS = 1_000
"""Whoever leaves is sent the log for so much longer. Whoever is expelled is not."""
VOUCHED = 8
"""So many coordinators that the state does not know yet may be known by another member's word."""
WISH_MS = 10_000
"""So long a wish to leave counts, if nothing comes of it."""


class MemberDirectory:
    """``introduced`` are the members that a newcomer was told of, or that a node knew before it was started again;
    ``catches_up_to`` is the last entry that its disk already had."""

    def __init__(self, me: NodeId, introduced: Sequence[Introduced], catches_up_to: int) -> None:
        self._me = me
        self._introduced = tuple(introduced)
        self._catches_up_to = catches_up_to
        self._is_caught_up = False
        """Has the state reached what this disk already knew, ourselves as a member included?"""
        self._linked: dict[NodeId, Introduced] = {}
        self.linked: frozenset[NodeId] = frozenset()
        """Who gets the log."""
        self.members: frozenset[NodeId] = frozenset()
        """The other members."""
        self._vouched: dict[NodeId, tuple[Introduced, int]] = {}
        """Whom a member has introduced since, and the entry at which our own state will know better."""
        self._wishes: dict[NodeId, Instant] = {}
        self._farewells: dict[NodeId, Instant] = {}
        self._invitations: tuple[PublicKey, ...] = ()
        self._agreed: Mapping[NodeId, MemberRecord] = {}
        """The members of the state when it was met last."""

    @property
    def others(self) -> Mapping[NodeId, Introduced]:
        """Those with their names."""
        return self._linked

    def wishes_to_leave(self, now: Instant, node: NodeId) -> None:
        """``node`` asks to be removed itself."""
        if node in self._linked:
            self._wishes[node] = after(now, WISH_MS)

    def vouch(self, member: Introduced, applied: int) -> None:
        """Somebody whom we trust says that ``member`` is one in the state after the entry at ``applied``."""
        if not is_public_key(member.public_key) or not is_address(member.address):
            return
        if node_id(member.public_key) == member.node:
            self._vouched.pop(member.node, None)
            self._vouched[member.node] = member, applied
        if len(self._vouched) > VOUCHED:
            del self._vouched[next(iter(self._vouched))]

    def deadline(self) -> Instant | None:
        """When a farewell is over."""
        return earliest(*self._farewells.values()) if self._farewells else None

    def is_due(self, now: Instant) -> bool:
        """Is a farewell over?"""
        return bool(self._farewells) and any(now >= until for until in self._farewells.values())

    def knows(self, state: ClusterState | None) -> bool:
        """Would ``meet`` change nothing? So it is with most of what is agreed on."""
        is_settled = self._is_caught_up and not (self._vouched or self._wishes or self._farewells)
        return is_settled and state is not None and state.members == self._agreed and not self._is_invited(state)

    def _is_invited(self, state: ClusterState) -> bool:
        return tuple(sorted(state.invitations)) != self._invitations

    def meet(self, now: Instant, state: ClusterState | None) -> list[Effect]:
        """Speak with the members, and with nobody else."""
        self._agreed = {} if state is None else dict(state.members)
        members = self._members(state)
        members.pop(self._me, None)
        self._farewells = self._still_parting(now, members)
        parting = {node: self._linked[node] for node in self._farewells}
        effects: list[Effect] = [
            Link(node, member.name, member.address, member.public_key)
            for node, member in members.items()
            if self._linked.get(node) != member
        ]
        wanted = members | parting
        for gone in sorted(self._linked.keys() - wanted.keys()):
            effects += [] if state is None else [Send(gone, Expelled(state.applied))]
            effects.append(Unlink(gone))
        self._linked = wanted
        self.linked = frozenset(wanted)
        self.members = self.linked - self._farewells.keys()
        if state is not None and self._is_invited(state):
            self._invitations = tuple(sorted(state.invitations))
            effects.append(AllowInvitations(self._invitations))
        return effects

    def _still_parting(self, now: Instant, members: dict[NodeId, Introduced]) -> dict[NodeId, Instant]:
        self._wishes = {node: until for node, until in self._wishes.items() if now < until}
        parting = {node: until for node, until in self._farewells.items() if now < until}
        for node in self._wishes.keys() & (self._linked.keys() - members.keys()):
            parting[node] = after(now, FAREWELL_MS)
            del self._wishes[node]
        return {node: parting[node] for node in sorted(parting) if node not in members}

    def _members(self, state: ClusterState | None) -> dict[NodeId, Introduced]:
        """Those of the state; until it has caught up also those that were known before, or nobody could be asked."""
        agreed = {} if state is None else state.members
        members = {m.node: Introduced(m.node, m.name, m.address, m.public_key) for m in agreed.values()}
        if state is not None and self._me in agreed and state.applied >= self._catches_up_to:
            self._is_caught_up = True
        if not self._is_caught_up:
            members = {other.node: other for other in self._introduced} | members
        if state is not None:
            self._vouched = {node: found for node, found in self._vouched.items() if state.applied < found[1]}
        return members | {node: member for node, (member, _) in self._vouched.items()}
