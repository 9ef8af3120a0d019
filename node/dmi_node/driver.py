"""The one loop: events in, ``peer.step``, one durable write, and only then what had to wait for it.

While the disk takes nothing the loop goes on: what is not durable is held back with all that stood after it and is tried
again, and the peer is told, so that it promises nothing meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from dmi_node import clock
from dmi_node.storage.journal import Journal, UnwritableError
from dmi_protocol import limits
from dmi_protocol.blame import TAKING, SetAside, blame, digest_of
from dmi_protocol.deferred import RETRY_MS, WRITES, DeferredEffects
from dmi_protocol.effects import Effect
from dmi_protocol.events import DiskFailed, DiskReturned, Event, Received, Ticked
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.peer import Peer


class Driver:
    """Owns the peer: nobody else steps it. ``do`` carries out every effect but the writes. Events that are ``set_aside`` are not
    taken in."""

    def __init__(
        self, peer: Peer, journal: Journal, do: Callable[[Effect], None], set_aside: SetAside | None = None
    ) -> None:
        self._set_aside = set_aside or SetAside()
        self.peer = peer
        self._journal = journal
        self._do = do
        self._events: deque[Event | asyncio.Future[None]] = deque()
        """And marks: whoever waits for one waits for what stands before it."""
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._disk = ThreadPoolExecutor(1, "journal")
        self._cause: str | None = None
        """Why the disk takes nothing; None while it does."""
        self._retry_at: Instant | None = None
        self._deferred = DeferredEffects(peer.me.name)
        self._facts: dict[str, bytes] = {}
        self.dropped = 0
        """Messages that came faster than they could be taken in."""

    def give(self, event: Event) -> None:
        """Something happened. When the queue is full messages are dropped, as a network may; our own events are not."""
        if len(self._events) >= limits.EVENT_QUEUE_ITEMS and isinstance(event, Received):
            self.dropped += 1
            return
        self._events.append(event)
        self._wake.set()

    async def done(self) -> None:
        """Until all that was given so far is taken in, and what follows from it is done."""
        mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.append(mark)
        self._wake.set()
        await mark

    async def run(self) -> None:
        """Turn until cancelled. A journal that cannot be used any more ends it, because nothing can be promised."""
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
        """Remember a fact, on the thread that owns the journal; later, while the disk takes nothing."""
        self._facts[name] = value
        if self._cause is None:
            await self._try([])

    async def _turn(self) -> None:
        if self._retry_at is not None and clock.now() >= self._retry_at:
            await self._retry()
        effects: list[Effect] = []
        marks: list[asyncio.Future[None]] = []
        deadline = self.peer.deadline()
        if not self._events and (deadline is None or clock.now() < deadline):
            self._set_timer()
            return
        if not self._events:
            self._events.append(Ticked())
        for _ in range(min(len(self._events), limits.EVENTS_PER_WRITE)):
            event = self._events.popleft()
            if isinstance(event, asyncio.Future):
                marks.append(event)
                continue
            self._deferred.happened(event)
            effects += self._step(event)
        writes = [effect for effect in effects if isinstance(effect, WRITES)]
        if self._cause is None and writes:
            await self._try(writes)
        if self._cause is not None:
            effects = self._deferred.hold(self._cause, effects)
        self._carry_out(effects)
        for mark in marks:
            if not mark.done():
                mark.set_result(None)
        if self._events:
            self._wake.set()
        self._set_timer()

    def _step(self, event: Event) -> list[Effect]:
        if self._set_aside and (digest := digest_of(event)) is not None and self._set_aside.of(TAKING, digest):
            return []
        try:
            return self.peer.step(clock.now(), event)
        except Exception as error:
            if (digest := digest_of(event)) is not None:
                blame(error, TAKING, digest)
            raise

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, WRITES):
                self._do(effect)

    # While the disk takes nothing

    async def _try(self, writes: Sequence[Effect]) -> bool:
        """Make ``writes`` durable, and the facts that wait. The first failure is the very next event of the peer."""
        facts = dict(self._facts)
        try:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._write, writes, facts)
        except UnwritableError as error:
            if self._cause is None:
                self._events.appendleft(DiskFailed(error.cause))
                self._wake.set()
            self._cause, self._retry_at = error.cause, after(clock.now(), RETRY_MS)
            return False
        self._facts = {name: value for name, value in self._facts.items() if facts.get(name) is not value}
        return True

    def _write(self, writes: Sequence[Effect], facts: Mapping[str, bytes]) -> None:
        if writes:
            self._journal.write(writes)
        for name, value in facts.items():
            self._journal.keep(name, value)

    async def _retry(self) -> None:
        if not await self._try(self._deferred.writes):
            return
        self._cause, self._retry_at = None, None
        self._carry_out(self._deferred.release())
        self._events.append(DiskReturned())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = earliest(self.peer.deadline(), self._retry_at)
        if deadline is not None:
            delay = max(0, deadline - clock.now()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake.set)
