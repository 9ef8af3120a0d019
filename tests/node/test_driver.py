"""The one loop, with a peer of the test's and a journal that notes its order."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dmi_node import clock
from dmi_node.driver import Driver
from dmi_node.storage.journal import JournalError, UnwritableError
from dmi_protocol import limits
from dmi_protocol.blame import SetAside, subject_of
from dmi_protocol.effects import Answer, Changed, DropBlob, Effect, PersistVote, Send
from dmi_protocol.events import BlobArrived, Connected, DiskFailed, DiskReturned, Event, Received, Ticked
from dmi_protocol.identity import BlobHash, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.control import Seeking
from dmi_protocol.messages.membership import Ping
from dmi_protocol.peer import Me
from dmi_protocol.reasons import DiskFull

SECONDS = 10
THERE = NodeId("1" * 16)


def vote(term: int) -> PersistVote:
    return PersistVote(term, None)


def effect(number: int) -> DropBlob:
    return DropBlob(BlobHash(str(number)))


class FakePeer:
    """Does what ``react`` says for each event; wants to be woken at ``wants``."""

    def __init__(self, react: Callable[[Event], list[Effect]]) -> None:
        self.react = react
        self.me = Me(THERE, "n1", "h:1", PublicKey("k"))
        self.wants: Instant | None = None
        self.stepped: list[Event] = []

    def step(self, now: Instant, event: Event) -> list[Effect]:
        self.stepped.append(event)
        return self.react(event)

    def deadline(self) -> Instant | None:
        return self.wants


class FakeJournal:
    """Notes every write, from whatever thread; may wait, and may fail."""

    def __init__(self, order: list[object]) -> None:
        self.order = order
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Event()
        self.error: JournalError | None = None
        self.thread: int | None = None

    def write(self, writes: Sequence[Effect]) -> None:
        self.thread = threading.get_ident()
        self.writing.set()
        assert self.gate.wait(SECONDS)
        if self.error is not None:
            raise self.error
        self.order.append(tuple(writes))

    def keep(self, name: str, value: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.order.append((name, value))


class Loop:
    def __init__(self, react: Callable[[Event], list[Effect]]) -> None:
        self.order: list[object] = []
        self.peer = FakePeer(react)
        self.journal = FakeJournal(self.order)
        self.done = asyncio.Event()
        self.driver = Driver(self.peer, self.journal, self._do)  # type: ignore[arg-type]
        self.task: asyncio.Task[None] | None = None

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Changed):
            self.done.set()
        else:
            self.order.append(effect)

    async def until_done(self) -> None:
        await self.done.wait()
        self.done.clear()


@asynccontextmanager
async def driving(react: Callable[[Event], list[Effect]], *events: Event) -> AsyncIterator[Loop]:
    loop = Loop(react)
    for event in events:
        loop.driver.give(event)
    loop.task = asyncio.create_task(loop.driver.run())
    try:
        async with asyncio.timeout(SECONDS):
            yield loop
    finally:
        loop.journal.gate.set()
        loop.task.cancel()
        await asyncio.gather(loop.task, return_exceptions=True)


def number(event: Event) -> int:
    return int(event.blob) if isinstance(event, BlobArrived) else -1


async def test_a_batch_is_one_write_and_then_its_effects_in_order() -> None:
    def react(event: Event) -> list[Effect]:
        at = number(event)
        return [effect(at), vote(at), effect(10 * at), *([Changed()] if at == 3 else [])] if at > 0 else []

    events = [BlobArrived(BlobHash(str(at))) for at in (1, 2, 3)]
    async with driving(react, *events) as loop:
        await loop.until_done()
        assert loop.order == [(vote(1), vote(2), vote(3)), *map(effect, (1, 10, 2, 20, 3, 30))]
        assert loop.journal.thread != threading.get_ident()


async def test_the_loop_goes_on_while_the_disk_is_slow_and_nothing_leaves_before() -> None:
    def react(event: Event) -> list[Effect]:
        return (
            [vote(1), effect(1), Changed()]
            if number(event) == 1
            else [effect(2), Changed()]
            if number(event) == 2
            else []
        )

    async with driving(react) as loop:
        loop.journal.gate.clear()
        loop.driver.give(BlobArrived(BlobHash("1")))
        while not loop.journal.writing.is_set():
            await asyncio.sleep(0)
        loop.driver.give(BlobArrived(BlobHash("2")))
        for _ in range(100):
            await asyncio.sleep(0)
        assert loop.order == []
        assert BlobArrived(BlobHash("2")) not in loop.peer.stepped
        loop.journal.gate.set()
        await loop.until_done()
        assert loop.order[:2] == [(vote(1),), effect(1)]
        while effect(2) not in loop.order:
            await asyncio.sleep(0)


async def test_a_write_that_fails_ends_the_loop_and_nothing_leaves() -> None:
    def react(event: Event) -> list[Effect]:
        return [vote(1), effect(1)] if number(event) == 1 else []

    async with driving(react) as loop:
        loop.journal.error = JournalError("the file is damaged")
        loop.driver.give(BlobArrived(BlobHash("1")))
        assert loop.task is not None
        with pytest.raises(JournalError):
            await loop.task
        assert loop.order == []


FULL = UnwritableError(Path("state.sqlite"), "no space")
ASKED = RequestId("asked")


async def test_while_the_disk_is_full_nothing_is_promised_and_then_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmi_node.driver.RETRY_MS", 20)
    said = Send(THERE, Seeking())

    first: list[Effect] = [effect(10), vote(1), said, Answer(ASKED, "yes"), effect(11)]
    second: list[Effect] = [effect(2), said]

    def react(event: Event) -> list[Effect]:
        if isinstance(event, DiskFailed | DiskReturned):
            return [Changed()]
        return first if number(event) == 1 else second if number(event) == 2 else []

    async with driving(react) as loop:
        loop.journal.error = FULL
        loop.driver.give(BlobArrived(BlobHash("1")))
        await loop.until_done()
        assert loop.peer.stepped[-1] == DiskFailed("no space")
        assert loop.order == [Answer(ASKED, "", DiskFull("n1", "no space"))], "no yes, and no word to anybody"
        loop.driver.give(BlobArrived(BlobHash("2")))
        while said not in loop.order:
            await asyncio.sleep(0)
        await loop.driver.keep("members", b"n0")
        loop.order.clear()
        loop.journal.error = None
        await loop.until_done()
        assert DiskReturned() in loop.peer.stepped
        assert loop.order == [(vote(1),), ("members", b"n0"), effect(10), effect(11), effect(2)]
        assert loop.peer.stepped.count(DiskFailed("no space")) == 1


async def test_a_fact_that_cannot_be_kept_is_kept_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmi_node.driver.RETRY_MS", 20)
    async with driving(lambda event: [Changed()] if isinstance(event, DiskReturned) else []) as loop:
        loop.journal.error = FULL
        await loop.driver.keep("members", b"n0")
        await loop.driver.keep("members", b"n1")
        loop.journal.error = None
        await loop.until_done()
        assert loop.order == [("members", b"n1")]


async def test_a_bug_of_a_machine_ends_the_loop() -> None:
    def react(event: Event) -> list[Effect]:
        assert number(event) != 1, "an invariant is false"
        return []

    async with driving(react) as loop:
        loop.driver.give(BlobArrived(BlobHash("1")))
        assert loop.task is not None
        with pytest.raises(AssertionError, match="invariant"):
            await loop.task


async def test_the_peer_is_woken_when_it_wants_to_be() -> None:
    woken: list[Instant] = []

    def react(event: Event) -> list[Effect]:
        if isinstance(event, Ticked):
            woken.append(clock.now())
            loop_of[0].peer.wants = after(clock.now(), 50) if len(woken) < 3 else None
        return [Changed()] if len(woken) == 3 else []

    loop_of: list[Loop] = []
    loop = Loop(react)
    loop_of.append(loop)
    loop.task = asyncio.create_task(loop.driver.run())
    try:
        await asyncio.wait_for(loop.until_done(), SECONDS)
    finally:
        loop.task.cancel()
        await asyncio.gather(loop.task, return_exceptions=True)
    assert woken[1] - woken[0] >= 50
    assert woken[2] - woken[1] >= 50
    assert all(isinstance(event, Ticked) for event in loop.peer.stepped)


async def test_messages_are_dropped_beyond_the_bound_and_our_own_events_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "EVENT_QUEUE_ITEMS", 3)
    heard = Received(THERE, Ping(1))
    loop = Loop(lambda _: [])
    for event in (heard, heard, heard, heard, Connected(THERE)):
        loop.driver.give(event)
    assert loop.driver.dropped == 1
    loop.task = asyncio.create_task(loop.driver.run())
    try:
        async with asyncio.timeout(SECONDS):
            while Connected(THERE) not in loop.peer.stepped:
                await asyncio.sleep(0)
    finally:
        loop.task.cancel()
        await asyncio.gather(loop.task, return_exceptions=True)
    assert loop.peer.stepped.count(heard) == 3


async def test_facts_are_kept_by_the_thread_that_writes() -> None:
    async with driving(lambda _: []) as loop:
        await loop.driver.keep("members", b"n0")
        assert loop.order == [("members", b"n0")]


async def test_an_event_that_ended_the_daemon_twice_is_left_out() -> None:
    poison, other = Received(THERE, Ping(1)), Received(THERE, Ping(2))

    def react(event: Event) -> list[Effect]:
        if event == poison:
            raise KeyError("odd")
        return []

    def driver(set_aside: SetAside) -> tuple[Driver, FakePeer]:
        peer = FakePeer(react)
        return Driver(peer, FakeJournal([]), lambda _: None, set_aside), peer  # type: ignore[arg-type]

    first, _ = driver(SetAside())
    first.give(poison)
    with pytest.raises(KeyError) as caught:
        await asyncio.wait_for(first.run(), SECONDS)
    subject = subject_of(caught.value)
    assert subject is not None
    again, peer = driver(SetAside({subject: "KeyError: 'odd'"}))
    running = asyncio.ensure_future(again.run())
    again.give(poison)
    again.give(other)
    await asyncio.wait_for(again.done(), SECONDS)
    assert peer.stepped == [other, Ticked()]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
