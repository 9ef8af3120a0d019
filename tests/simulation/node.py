"""One node of a universe: a peer, its disk, and a driver that does what the daemon's does.

The driver holds the machines to their word and no more: what stands *before* the first write of a turn leaves at once,
what stands after it leaves when the write is durable, and meanwhile events queue.
"""

from collections.abc import Sequence
from random import Random
from typing import Protocol

from msgspec import structs

from dmi_protocol import limits
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.deferred import RETRY_MS, DeferredEffects
from dmi_protocol.effects import Effect, Link, Send, Unlink
from dmi_protocol.events import DiskFailed, DiskReturned, Event, Ticked
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.messages.control import Introduced
from dmi_protocol.peer import Me, Peer, PeerSettings
from tests.simulation.clock import Clock
from tests.simulation.disk import WRITES, Disk
from tests.simulation.trouble import Violation, demand

_CAUSE = "no space"
_RESTLESS = 200
"""So many turns without time passing are a livelock."""
_CHECK_EVERY = 4
"""Turns that write are checked at once, the others by and by: nothing of theirs leaves the machine unchecked for long."""


class Shell(Protocol):
    """What a node's effects act upon."""

    def do(self, node: "Node", effect: Effect) -> None:
        """Carry out an effect that is not a write."""
        ...

    def turned(self, node: "Node") -> None:
        """A turn is over, and all it wrote is durable."""
        ...


class Node:
    """``boot_count`` counts starts; whatever was planned before the last one does not happen."""

    def __init__(
        self, clock: Clock, me: Me, restored: Restored, introduced: Sequence[Introduced], shell: Shell
    ) -> None:
        self.me = me
        self.name = me.name
        self.disk = Disk(restored)
        self.peer: Peer | None = None
        self.boot_count = 0
        self.is_writing = False
        self.write_ms = 2
        self.disk_is_full = False
        self.in_trouble = False
        """Has a write been refused that is not durable yet?"""
        self.is_paused = False
        self.adapter_raises = 0.0
        """How often what it does for a role process raises something that nobody has thought of."""
        self.known: dict[NodeId, Introduced] = {other.node: other for other in introduced}
        self.linked: set[NodeId] = set()
        self.blobs: dict[BlobHash, dict[int, int]] = {}
        """Parts of checkpoints on its disk: the version of each bucket in them."""
        self.has_gossip = False
        """Has it heard of other members since the checkers looked?"""
        self.torn = 0
        self.refutations = 0
        self.refused = 0
        """Writes that its disk did not take."""
        self._clock = clock
        self._shell = shell
        self._events: list[Event] = []
        self._pending: list[Effect] = []
        self._deferred = DeferredEffects(me.name)
        self._tick_at: int | None = None
        self._turns = (0, 0)
        self._unchecked = 0

    @property
    def is_up(self) -> bool:
        """Does the daemon run?"""
        return self.peer is not None

    @property
    def writes(self) -> list[Effect]:
        """What the disk is writing now."""
        return [effect for effect in self._pending if isinstance(effect, WRITES)]

    def start(self, settings: PeerSettings) -> None:
        """The daemon starts from what the disk holds."""
        self.boot_count += 1
        self.linked = set()
        introduced = tuple(self.known.values())
        random = Random(self._clock.random.random())
        who = structs.replace(self.me, boot_count=self.boot_count)
        self.peer = Peer(who, settings, random, self.disk.restored(), introduced)
        self.give(Ticked())

    def crash(self) -> None:
        """Gone without a word; a write under way is torn."""
        assert self.peer is not None
        self.refutations += self.peer.swim.refutations
        self.boot_count += 1
        if self.is_writing:
            self.torn += self.disk.tear(self.writes, self._clock.random)
        self.peer = None
        self.is_writing = self.is_paused = self.in_trouble = False
        self._events, self._pending, self._deferred = [], [], DeferredEffects(self.name)
        self._tick_at = None

    def give(self, event: Event) -> None:
        """An event happens now."""
        if self.peer is None:
            return
        self._events.append(event)
        if len(self._events) >= limits.EVENT_QUEUE_ITEMS:
            raise Violation("queues", f"{len(self._events)} events wait at {self.name}")
        if not self.is_writing and not self.is_paused:
            self._turn()

    def pause(self) -> None:
        """The host stands still."""
        self.is_paused = True

    def unpause(self) -> None:
        """The host goes on, with all that came meanwhile."""
        self.is_paused = False
        if self.peer is not None and not self.is_writing:
            self._events.append(Ticked())
            self._turn()

    def _turn(self) -> None:
        peer, now = self.peer, self._clock.now
        assert peer is not None
        self._turns = (now, self._turns[1] + 1) if self._turns[0] == now else (now, 0)
        if self._turns[1] >= _RESTLESS:
            raise Violation("livelock", f"{self.name} turns and turns while no time passes")
        events = self._events[: limits.EVENTS_PER_WRITE]
        del self._events[: limits.EVENTS_PER_WRITE]
        effects: list[Effect] = []
        for event in events:
            if self.in_trouble:
                self._deferred.happened(event)
            effects += peer.step(now, event)
        first = (
            next((place for place, effect in enumerate(effects) if type(effect) in WRITES), None) if effects else None
        )
        self._unchecked += 1
        if first is not None or self._unchecked >= _CHECK_EVERY:
            self._unchecked = 0
            peer.check()
        if self.in_trouble:
            demand("durable", first is None, f"{self.name} goes on writing while its disk takes nothing")
            self._do(self._deferred.hold(_CAUSE, effects))
            self._end_turn()
        elif first is None:
            self._do(effects)
            self._end_turn()
        else:
            self.is_writing = True
            self._pending = effects[first:]
            delay = 1 + int(self.write_ms * self._clock.random.random())
            self._clock.later(delay, self._written, self.boot_count)
            self._do(effects[:first])

    def _written(self, boot_count: int) -> None:
        if boot_count != self.boot_count:
            return
        effects, self._pending = self._pending, []
        self.is_writing = False
        if self.disk_is_full:
            self._refuse([] if self.in_trouble else effects)
            return
        for effect in effects:
            if isinstance(effect, WRITES):
                self.disk.write(effect)
        if self.in_trouble:
            self.in_trouble = False
            self._events.append(DiskReturned())
            effects = self._deferred.release()
        self._do([effect for effect in effects if not isinstance(effect, WRITES)])
        self._end_turn()

    def _refuse(self, effects: Sequence[Effect]) -> None:
        """The disk takes nothing: as the daemon's driver does, keep it all, tell the peer, and try again."""
        self.refused += 1
        if not self.in_trouble:
            self.in_trouble = True
            self._events.insert(0, DiskFailed(_CAUSE))
        self._do(self._deferred.hold(_CAUSE, effects))
        self._clock.later(RETRY_MS, self._retry, self.boot_count)
        self._end_turn()

    def _retry(self, boot_count: int) -> None:
        if boot_count != self.boot_count:
            return
        if self.is_writing or self.is_paused or self.disk_is_full:
            self._clock.later(RETRY_MS, self._retry, boot_count)
            return
        self._pending = self._deferred.writes
        self.is_writing = True
        self._clock.later(1 + int(self.write_ms * self._clock.random.random()), self._written, boot_count)

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    pass
                case Link(other, name, address, public_key):
                    self.known[other] = Introduced(other, name, address, public_key)
                    self.linked.add(other)
                case Unlink(other):
                    self.known.pop(other, None)
                    self.linked.discard(other)
            self._shell.do(self, effect)

    def _end_turn(self) -> None:
        if not self.in_trouble:
            self._shell.turned(self)
        if self.is_paused:
            return
        if self._events:
            self._turn()
        else:
            self._set_tick()

    def _set_tick(self) -> None:
        assert self.peer is not None
        deadline = self.peer.deadline()
        if deadline is not None and (self._tick_at is None or deadline < self._tick_at):
            self._tick_at = deadline
            self._clock.at(deadline, self._tick, self.boot_count, deadline)

    def _tick(self, boot_count: int, planned: int) -> None:
        if boot_count != self.boot_count or self._tick_at != planned:
            return
        self._tick_at = None
        if self.is_writing or self.is_paused or self.peer is None:
            return
        deadline = self.peer.deadline()
        if deadline is not None and deadline <= self._clock.now:
            self._events.append(Ticked())
            self._turn()
        else:
            self._set_tick()
