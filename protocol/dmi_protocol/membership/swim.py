"""The failure detector of one node: whom it probes, whom it suspects, and what it tells the others."""

from collections.abc import Iterable
from random import Random

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.effects import Effect, Send
from dmi_protocol.events import Connected, Disconnected, Event, Received, Stopping
from dmi_protocol.identity import NodeId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.membership.dissemination import Dissemination
from dmi_protocol.membership.member import Member, overrides
from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.membership.suspicion import suspicion_ms
from dmi_protocol.messages import membership as say
from dmi_protocol.messages.membership import FACTS, MembershipMessage, Rumor, Standing, Update


class MemberChanged(Struct, frozen=True):
    """For the peer: a member is seen otherwise than before."""

    node: NodeId
    standing: Standing


class _Probe(Struct):
    target: NodeId
    indirect_at: Instant | None
    """When others are asked; None once they were."""
    fails_at: Instant
    asker: tuple[NodeId, int] | None = None
    """Who asked us to try, and under which number."""
    introduces: bool = False
    """It carried all that we spread ourselves."""


Output = Effect | MemberChanged
_LIFE_BITS = 32
"""What a node spreads from one start to the next: fewer values than this many bits can count."""


class Swim:
    """Decides for one node; see ``machine.py`` for what the caller must do."""

    def __init__(self, me: NodeId, settings: SwimSettings, random: Random, boot_count: int = 0) -> None:
        """``boot_count`` is larger after each restart, so that what we spread now replaces what we spread before."""
        settings.check()
        self._first_version = boot_count << _LIFE_BITS
        self._me = me
        self._settings = settings
        self._random = random
        self._incarnation = 0
        self._is_leaving = False
        self.members: dict[NodeId, Member] = {}
        self.rumors: dict[tuple[NodeId, str], Rumor] = {}
        self.heard_rumors = 0
        """How often a rumor was new to us, or was forgotten."""
        self.heard_facts = 0
        """How often one of those was about a member itself (``FACTS``)."""
        self.refutations = 0
        self._health = 0
        self._updates: Dissemination[Update] = Dissemination(settings)
        self._rumors_due: Dissemination[Rumor] = Dissemination(settings)
        self._over: dict[str, None] = {}
        """Keys under which nothing is spread any more; the last ones."""
        self._ring: list[NodeId] = []
        self._cut: set[NodeId] = set()
        """Members whose connections have broken, and who were not heard since."""
        self._strange: set[NodeId] = set()
        """Who may have missed what we spread while we were not connected: it is told again, until it acknowledges."""
        self._probes: dict[int, _Probe] = {}
        self._sequence = 0
        self._probe_at: Instant | None = None
        self._spread_at: Instant | None = None
        self._due: Instant | None = None
        self._is_new = True
        """Has something happened since ``_due`` was worked out?"""

    def set_members(self, now: Instant, nodes: Iterable[NodeId]) -> None:
        """Watch these, and nobody else. A new one counts as alive until probes say otherwise."""
        self._is_new = True
        wanted = set(nodes) - {self._me}
        for gone in self.members.keys() - wanted:
            del self.members[gone]
            self._strange.discard(gone)
            self._cut.discard(gone)
            self._updates.drop(gone)
            self._rumors_due.drop(gone)
            self._forget({about for about in self.rumors if about[0] == gone})
        for new in sorted(wanted - self.members.keys()):
            self.members[new] = Member("alive", 0, now, set())
            self._strange.add(new)
        if self.members and self._probe_at is None:
            self._probe_at = after(now, self._random.randrange(self._settings.period_ms))
        elif not self.members:
            self._probe_at = None

    def is_alive(self, node: NodeId) -> bool:
        """Is ``node`` believed to be alive or only suspected? We ourselves are."""
        return node == self._me or (node in self.members and self.members[node].is_there())

    def standing(self, node: NodeId) -> Standing:
        """How ``node`` is seen. We ourselves are alive; who is not watched is dead."""
        if node == self._me:
            return "alive"
        return self.members[node].standing if node in self.members else "dead"

    def publish(self, now: Instant, key: str, value: bytes) -> None:
        """Spread a small value; it replaces what we spread under ``key`` before. Not what is ``retract``-ed, nor more than
        ``limits.RUMORS`` things at a time."""
        old = self.rumors.get((self._me, key))
        rumor = Rumor(self._me, key, (self._first_version if old is None else old.version) + 1, value)
        self._hold(now, rumor)

    def retract(self, key: str) -> None:
        """Nothing is spread under this key any more, by anybody: what it was about is over."""
        self._over[key] = None
        if len(self._over) > limits.JOBS_REMEMBERED:
            del self._over[next(iter(self._over))]
        gone = {about for about in self.rumors if about[1] == key}
        self._forget(gone)
        for about in gone:
            self._rumors_due.end(about)

    def _may_hold(self, rumor: Rumor) -> bool:
        about = (rumor.origin, rumor.key)
        is_small = len(rumor.value) <= limits.RUMOR_BYTES and len(rumor.key) <= limits.RUMOR_KEY_CHARACTERS
        if rumor.key in self._over or not is_small:
            return False
        return about in self.rumors or sum(origin == rumor.origin for origin, _ in self.rumors) < limits.RUMORS

    def _forget(self, gone: set[tuple[NodeId, str]]) -> None:
        for about in gone:
            del self.rumors[about]
        self.heard_rumors += len(gone)

    def _hold(self, now: Instant, rumor: Rumor) -> None:
        about = (rumor.origin, rumor.key)
        if not self._may_hold(rumor):
            return
        self.rumors[about] = rumor
        self.heard_rumors += 1
        self.heard_facts += rumor.key == FACTS
        self._rumors_due.add(about, rumor)
        if self._spread_at is None:
            self._spread_at, self._is_new = now, True

    def deadline(self) -> Instant | None:
        """See ``Machine.deadline``."""
        if self._is_new:
            self._is_new = False
            self._due = self._first_due()
        return self._due

    def _first_due(self) -> Instant | None:
        probes = [probe.indirect_at or probe.fails_at for probe in self._probes.values()]
        suspects = [(node, member) for node, member in self.members.items() if member.standing == "suspect"]
        verdicts = [self._verdict_at(node, member) for node, member in suspects]
        return earliest(self._probe_at, self._spread_at if self.members else None, *probes, *verdicts)

    def _verdict_at(self, node: NodeId, member: Member) -> Instant:
        if node in self._cut:
            return after(member.since, self._settings.cut_suspicion_ms)
        return after(member.since, suspicion_ms(len(member.accusers) - 1, len(self.members) + 1, self._settings))

    def step(self, now: Instant, event: Event) -> list[Output]:
        """See ``Machine.step``."""
        output: list[Output] = []
        match event:
            case Received(sender, message) if isinstance(message, MembershipMessage) and sender in self.members:
                output = self._received(now, sender, message)
            case Connected(peer) if peer in self.members:
                self._cut.discard(peer)
                self._strange.add(peer)
                output = self._ping(now, peer, hurried=True)
            case Disconnected(peer) if peer in self.members and self.members[peer].standing == "alive":
                self._cut.add(peer)
                output = self._ping(now, peer, hurried=True)
            case Stopping():
                return self._leave()
            case _:
                due = self.deadline()
                if due is None or now < due:
                    return output
        self._is_new = True
        return [*output, *self._tick(now)]

    def _leave(self) -> list[Output]:
        """We end in good order, and say so; whoever hears it need not suspect us first (SWIM, 4.1)."""
        self._is_leaving = True
        self._updates.add((self._me, ""), Update(self._me, "left", self._incarnation))
        return self._tell_some()

    # Probing

    def _tick(self, now: Instant) -> list[Output]:
        output: list[Output] = []
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = after(now, self._settings.period_ms * (1 + self._health))
            output += self._ping(now, self._next_target())
        for sequence, probe in list(self._probes.items()):
            if probe.indirect_at is not None and now >= probe.indirect_at:
                probe.indirect_at = None
                output += self._ask_others(sequence, probe)
            if now >= probe.fails_at:
                del self._probes[sequence]
                output += self._failed(now, probe)
        for node, member in self.members.items():
            if member.standing == "suspect" and now >= self._verdict_at(node, member):
                output += self._believe(now, Update(node, "dead", member.incarnation, self._me))
        if self._spread_at is not None and now >= self._spread_at and self.members:
            output += self._spread(now)
        return output

    def _next_target(self) -> NodeId:
        """Round robin over a shuffled ring, so that everybody is probed within a bounded time (SWIM, 4.3)."""
        while self._ring:
            target = self._ring.pop()
            if target in self.members:
                return target
        self._ring = sorted(self.members)
        self._random.shuffle(self._ring)
        return self._ring.pop()

    def _ping(
        self, now: Instant, target: NodeId, *, hurried: bool = False, asker: tuple[NodeId, int] | None = None
    ) -> list[Output]:
        if len(self._probes) >= self._settings.probes_max:  # a host that stood still is asked everything at once
            return []
        self._sequence += 1
        is_dead = not self.members[target].is_there()
        ping_ms = self._settings.cut_ping_ms if target in self._cut else self._settings.ping_ms
        ping_ms *= 1 + self._health  # an answer that we are too slow to read is not late (Lifeguard, local health)
        patience = ping_ms * (2 if hurried or asker else 3)
        indirect = None if is_dead or asker else after(now, ping_ms)
        introduces = target in self._strange
        self._probes[self._sequence] = _Probe(target, indirect, after(now, patience), asker, introduces)
        updates, rumors = self._gossip_for(target)
        if introduces:
            rumors = tuple(rumor for (origin, _), rumor in self.rumors.items() if origin == self._me)
        return [Send(target, say.Ping(self._sequence, updates, rumors))]

    def _gossip_for(self, target: NodeId) -> tuple[tuple[Update, ...], tuple[Rumor, ...]]:
        """What rides along. Whom we hold for suspect or dead is told so, to let it refute (Lifeguard, buddy system)."""
        size = len(self.members) + 1
        updates = self._updates.take(self._settings.updates_per_message, size)
        member = self.members.get(target)
        if member is not None and member.standing != "alive" and all(update.node != target for update in updates):
            updates = (*updates, Update(target, member.standing, member.incarnation))
        return updates, self._rumors_due.take(self._settings.rumors_per_message, size)

    def _ask_others(self, sequence: int, probe: _Probe) -> list[Output]:
        others = self._some_alive(probe.target)
        updates = self._updates.take(self._settings.updates_per_message, len(self.members) + 1)
        return [Send(other, say.PingRequest(sequence, probe.target, updates)) for other in others]

    def _some_alive(self, but: NodeId | None = None) -> list[NodeId]:
        alive = sorted(node for node, member in self.members.items() if member.standing == "alive" and node != but)
        return self._random.sample(alive, min(self._settings.indirect, len(alive)))

    def _failed(self, now: Instant, probe: _Probe) -> list[Output]:
        if probe.asker is not None:
            return [Send(probe.asker[0], say.Nack(probe.asker[1]))]
        member = self.members.get(probe.target)
        if member is None or not member.is_there():
            return []
        if member.standing == "alive":  # else others cannot reach it either, so it is not us
            self._health = min(self._settings.health_max, self._health + 1)
        return self._believe(now, Update(probe.target, "suspect", member.incarnation, self._me))

    # Hearing

    def _received(self, now: Instant, sender: NodeId, message: MembershipMessage) -> list[Output]:
        output: list[Output] = []
        self._cut.discard(sender)
        if not isinstance(message, say.Nack):
            for update in message.updates:
                output += self._believe(now, update)
        if isinstance(message, say.Ping | say.Ack | say.Gossip):
            for rumor in message.rumors:
                self._heard(now, sender, rumor)
        match message:
            case say.Ping(sequence):
                output.append(Send(sender, say.Ack(sequence, *self._gossip_for(sender))))
                is_under_way = any(probe.target == sender and probe.introduces for probe in self._probes.values())
                if sender in self._strange and not is_under_way:  # it knows us, so it will take our introduction now
                    output += self._ping(now, sender, hurried=True)
            case say.Ack(sequence):
                output += self._acknowledged(sender, sequence)
            case say.PingRequest(sequence, target) if target in self.members:
                output += self._ping(now, target, asker=(sender, sequence))
            case say.Nack(sequence) if sequence in self._probes:
                self._health = max(0, self._health - 1)
        return output

    def _acknowledged(self, sender: NodeId, sequence: int) -> list[Output]:
        probe = self._probes.pop(sequence, None)
        if probe is None:
            return []
        if probe.introduces and probe.target == sender:
            self._strange.discard(probe.target)
        if probe.asker is not None:
            return [Send(probe.asker[0], say.Ack(probe.asker[1]))]
        self._health = max(0, self._health - 1)
        return []

    def _heard(self, now: Instant, sender: NodeId, rumor: Rumor) -> None:
        known = self.rumors.get((rumor.origin, rumor.key))
        if rumor.origin == self._me:
            if known is None or (
                rumor != known and rumor.version >= known.version
            ):  # from before we were started again
                value = b"" if known is None else known.value
                self._hold(now, Rumor(self._me, rumor.key, rumor.version + 1, value))
        elif rumor.origin in self.members and (known is None or rumor.version > known.version):
            self._hold(now, rumor)
        elif rumor.origin == sender and known is not None and rumor != known:
            self._hold(now, known)  # its home is older than what it once spread: it hears so, and says it anew

    def _believe(self, now: Instant, update: Update) -> list[Output]:
        """Take an update in if it overrides what is known (SWIM, 4.2), and pass it on."""
        if update.node == self._me:
            return self._refute(update)
        member = self.members.get(update.node)
        if member is None:
            return []
        if not overrides(update, member):
            is_confirmation = (
                update.standing == member.standing == "suspect" and update.incarnation == member.incarnation
            )
            if is_confirmation and update.accuser is not None and update.accuser not in member.accusers:
                member.accusers.add(update.accuser)
                self._updates.add((update.node, ""), update)
            return []
        before, member.standing, member.incarnation = member.standing, update.standing, update.incarnation
        if before != update.standing:
            member.since = now
        member.accusers = {update.accuser} if update.accuser is not None else {self._me}
        self._updates.add((update.node, ""), update)
        if before == update.standing:
            return []
        output = [MemberChanged(update.node, update.standing), *self._tell_some()]
        if update.standing == "suspect" and update.accuser != self._me and self._is_to_check():
            output += self._ping(now, update.node, hurried=True)
        return output

    def _is_to_check(self) -> bool:
        """Are we one of the few who look for themselves at once, when another has raised a suspicion?"""
        return self._random.randrange(len(self.members) + 1) < 4 * self._settings.indirect

    def _refute(self, update: Update) -> list[Output]:
        """Somebody doubts us: a higher incarnation says that we live."""
        if update.standing == "alive" or self._is_leaving:
            return []
        if update.incarnation < self._incarnation:  # the accuser has missed our refutation: it gets it with the answer
            self._updates.add((self._me, ""), Update(self._me, "alive", self._incarnation))
            return []
        self._incarnation = update.incarnation + 1
        self.refutations += 1
        self._health = min(self._settings.health_max, self._health + 1)
        self._updates.add((self._me, ""), Update(self._me, "alive", self._incarnation))
        return self._tell_some()

    def _tell_some(self) -> list[Output]:
        """Important news does not wait for the next probe."""
        size = len(self.members) + 1
        targets = self._some_alive()
        return [Send(t, say.Gossip(self._updates.take(self._settings.updates_per_message, size), ())) for t in targets]

    def _spread(self, now: Instant) -> list[Output]:
        self._spread_at = None
        size = len(self.members) + 1
        sends: list[Output] = []
        for target in self._some_alive():
            rumors = self._rumors_due.take(self._settings.rumors_per_message, size)
            if rumors:
                sends.append(Send(target, say.Gossip((), rumors)))
        if len(self._rumors_due):
            self._spread_at = after(now, self._settings.rumor_ms)
        return sends

    def check(self) -> None:
        """Assert the invariants."""
        assert self._me not in self.members
        assert len(self._probes) <= self._settings.probes_max, "probes pile up"
        assert len(self.rumors) <= limits.RUMORS * (len(self.members) + 1), "rumors pile up"
        assert all(member.standing != "suspect" or member.accusers for member in self.members.values())
