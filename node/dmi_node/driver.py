"""The one loop: events in, ``peer.step``, one durable write, and only then what had to wait for it."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dmi_node import clock
from dmi_node.storage.journal import Journal
from dmi_protocol import limits
from dmi_protocol.effects import Effect, PersistEntries, PersistSnapshot, PersistVote
from dmi_protocol.events import Event, Received, Ticked
from dmi_protocol.peer import Peer

_WRITES = (PersistVote, PersistEntries, PersistSnapshot)


class Driver:
    """Owns the peer: nobody else steps it. ``do`` carries out every effect but the writes."""

    def __init__(self, peer: Peer, journal: Journal, do: Callable[[Effect], None]) -> None:
        self.peer = peer
        self._journal = journal
        self._do = do
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._disk = ThreadPoolExecutor(1, "journal")
        self.dropped = 0
        """Messages that came faster than they could be taken in."""

    def give(self, event: Event) -> None:
        """Something happened. When the queue is full messages are dropped, as a network may; our own events are not."""
        if len(self._events) >= limits.EVENT_QUEUE_ITEMS and isinstance(event, Received):
            self.dropped += 1
            return
        self._events.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Turn until cancelled. A failed write ends it, because nothing can be promised any more."""
        self.give(Ticked())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._turn()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._disk.shutdown(wait=True)

    async def keep(self, name: str, value: bytes) -> None:
        """Remember a fact, on the thread that owns the journal."""
        await asyncio.get_running_loop().run_in_executor(self._disk, self._journal.keep, name, value)

    async def _turn(self) -> None:
        effects: list[Effect] = []
        deadline = self.peer.deadline()
        if not self._events and (deadline is None or clock.now() < deadline):
            self._set_timer()
            return
        if not self._events:
            self._events.append(Ticked())
        for _ in range(min(len(self._events), limits.EVENTS_PER_WRITE)):
            effects += self.peer.step(clock.now(), self._events.popleft())
        writes = [effect for effect in effects if isinstance(effect, _WRITES)]
        if writes:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._journal.write, writes)
        for effect in effects:
            if not isinstance(effect, _WRITES):
                self._do(effect)
        if self._events:
            self._wake.set()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.peer.deadline()
        if deadline is not None:
            delay = max(0, deadline - clock.now()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake.set)
