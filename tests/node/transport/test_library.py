"""Two libraries that speak with each other without a network in between."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs
from dmi_node.tasks import Tasks
from dmi_node.transport import library as module
from dmi_node.transport.fetching import NoSourceError
from dmi_node.transport.library import Library
from dmi_protocol import limits, transfer
from dmi_protocol.cluster.owners import Used
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.messages.blobs import (
    AskBlob,
    BlobChunk,
    BlobHeld,
    BlobKept,
    BlobMessage,
    KeepBlob,
    LogPiece,
    WantChunk,
    WantLog,
)

HERE, THERE = NodeId("here"), NodeId("there")
DATA = b"".join(bytes([n]) * limits.BLOB_CHUNK_BYTES for n in range(1, 41)) + b"end"
BLOB = BlobHash(hashlib.sha256(DATA).hexdigest())
SECONDS = 20

Change = Callable[[BlobMessage], BlobMessage | None]


def unchanged(message: BlobMessage) -> BlobMessage:
    return message


def used(sizes: Mapping[BlobHash, int]) -> Used:
    return Used(models={"m:1": sizes[BLOB]}) if BLOB in sizes else Used(unclaimed=sum(sizes.values()))


class Pair:
    """``here`` and ``there``; what ``there`` says passes through ``change``."""

    def __init__(self, root: Path, change: Change) -> None:
        self.tasks = Tasks()
        self.homes = {node: Home(root / node) for node in (HERE, THERE)}
        self.blobs: dict[NodeId, Blobs] = {}
        for node, home in self.homes.items():
            home.make()
            self.blobs[node] = Blobs(home.blobs)
        self.said: list[BlobMessage] = []
        self.pinned: list[BlobHash] = []
        self.here = Library(HERE, self.homes[HERE], self.blobs[HERE], self.tasks, self._from_here, self._pin, used)
        self.there = Library(THERE, self.homes[THERE], self.blobs[THERE], self.tasks, self._from_there, self._pin, used)
        self._change = change

    async def _pin(self, blob: BlobHash) -> None:
        self.pinned.append(blob)

    def _from_here(self, to: NodeId, message: BlobMessage) -> None:
        assert to == THERE
        self.there.take(HERE, message)

    def _from_there(self, to: NodeId, message: BlobMessage) -> None:
        assert to == HERE
        changed = self._change(message)
        if changed is not None:
            self.said.append(changed)
            self.here.take(THERE, changed)

    def put(self, node: NodeId, data: bytes = DATA) -> None:
        self.homes[node].blobs.joinpath(hashlib.sha256(data).hexdigest()).write_bytes(data)


@asynccontextmanager
async def pair(root: Path, change: Change = unchanged) -> AsyncIterator[Pair]:
    made = Pair(root, change)
    try:
        async with asyncio.timeout(SECONDS):
            yield made
    finally:
        await made.tasks.close()


async def test_what_was_torn_here_is_fetched_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.put(THERE)
        both.homes[HERE].blobs.joinpath(BLOB).write_bytes(DATA[:-1])
        await both.here.fetch(BLOB, [THERE])
        assert both.blobs[HERE].is_whole(BLOB)


async def test_what_was_torn_there_is_had_from_another(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.homes[THERE].blobs.joinpath(BLOB).write_bytes(DATA[:-1] + b"?")
        with pytest.raises(NoSourceError, match="does not have it"):
            await both.here.fetch(BLOB, [THERE])
        assert not both.blobs[HERE].has(BLOB)
        both.put(THERE)
        await both.here.fetch(BLOB, [THERE])


async def test_a_blob_comes_in_chunks(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.put(THERE)
        await asyncio.gather(both.here.fetch(BLOB, [THERE]), both.here.fetch(BLOB, [THERE]))
        assert both.blobs[HERE].path(BLOB).read_bytes() == DATA
        assert sum(isinstance(said, BlobChunk) for said in both.said) == 41  # once, though it was wanted twice
        await both.here.fetch(BLOB, [])


async def test_an_empty_blob_comes_too(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.put(THERE, b"")
        empty = BlobHash(hashlib.sha256(b"").hexdigest())
        await both.here.fetch(empty, [THERE])
        assert both.blobs[HERE].read(empty, 0, 1) == (0, b"")


def lies(message: BlobMessage) -> BlobMessage:
    """Of every chunk."""
    return msgspec.structs.replace(message, data=bytes(7)) if isinstance(message, BlobChunk) else message


def lies_about_all(message: BlobMessage) -> BlobMessage:
    """Of the chunks, and of the digests that go with them."""
    match message:
        case BlobHeld(digests=digests) if digests:
            return msgspec.structs.replace(message, digests=hashlib.sha256(b"no").digest() * (len(digests) // 32))
        case BlobChunk():
            return msgspec.structs.replace(message, data=b"no")
        case _:
            return message


def grows(message: BlobMessage) -> BlobMessage:
    if isinstance(message, BlobHeld):
        return msgspec.structs.replace(message, digests=message.digests + bytes(32))
    return message


@pytest.mark.parametrize(
    ("change", "why"),
    [(grows, "how long"), (lies, "hash"), (lies_about_all, "hash")],
    ids=["grows", "lies", "lies about all"],
)
async def test_a_source_that_is_wrong_is_found_out(tmp_path: Path, change: Change, why: str) -> None:
    async with pair(tmp_path, change) as both:
        both.put(THERE)
        with pytest.raises(NoSourceError, match=why):
            await both.here.fetch(BLOB, [THERE])
        assert list(both.homes[HERE].blobs.iterdir()) == []
        chunks = sum(isinstance(said, BlobChunk) for said in both.said)
        assert change is not lies or chunks <= limits.BLOB_CHUNKS_ASKED, "who sends a wrong one is asked for no more"


async def test_a_cut_transfer_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SILENT_MS", 300)
    left = 20

    def is_cut(message: BlobMessage) -> BlobMessage | None:
        nonlocal left
        left -= isinstance(message, BlobChunk)
        return message if left > 0 else None

    async with pair(tmp_path, is_cut) as both:
        both.put(THERE)
        with pytest.raises(NoSourceError, match="did not answer"):
            await both.here.fetch(BLOB, [THERE])
    async with pair(tmp_path) as both:  # another daemon, on the same disk
        both.blobs[HERE].sweep()
        await both.here.fetch(BLOB, [THERE])
        assert both.blobs[HERE].path(BLOB).read_bytes() == DATA
        assert sum(isinstance(said, BlobChunk) for said in both.said) == 41 - 19


def changed(*chunks: int) -> bytes:
    """Another version of the same layout: these chunks are others."""
    size, found = limits.BLOB_CHUNK_BYTES, bytearray(DATA)
    for index in chunks:
        found[index * size] ^= 255
    return bytes(found)


@pytest.mark.parametrize("chunks", [(0,), (3, 17, 40)])
async def test_of_another_version_only_what_has_changed_comes(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    async with pair(tmp_path) as both:
        both.put(HERE)
        both.put(THERE, changed(*chunks))
        blob = BlobHash(hashlib.sha256(changed(*chunks)).hexdigest())
        await both.here.fetch(blob, [THERE])
        assert both.blobs[HERE].path(blob).read_bytes() == changed(*chunks)
        assert {said.index for said in both.said if isinstance(said, BlobChunk)} == set(chunks)


async def test_a_version_that_was_torn_here_is_not_taken_from(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        before = changed(3)
        both.put(HERE, before)
        torn = both.homes[HERE].blobs / hashlib.sha256(before).hexdigest()
        torn.write_bytes(changed(3, 7))
        both.put(THERE)
        await both.here.fetch(BLOB, [THERE])
        assert both.blobs[HERE].is_whole(BLOB)
        assert sum(isinstance(said, BlobChunk) for said in both.said) == 41


async def test_who_has_it_not_says_so(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        with pytest.raises(NoSourceError, match="does not have it"):
            await both.here.fetch(BLOB, [THERE])
        with pytest.raises(NoSourceError, match="no node"):
            await both.here.fetch(BLOB, [])
        with pytest.raises(NoSourceError, match="no SHA-256"):
            await both.here.fetch(BlobHash("../state.sqlite"), [THERE])


async def test_a_lost_answer_is_asked_for_again(tmp_path: Path) -> None:
    lost: list[BlobMessage] = []

    def loses(message: BlobMessage) -> BlobMessage | None:
        if lost:
            return message
        lost.append(message)
        return None

    async with pair(tmp_path, loses) as both:
        both.put(THERE)
        await both.here.fetch(BLOB, [THERE])
        assert both.blobs[HERE].has(BLOB)


async def test_another_node_keeps_a_copy(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.put(HERE)
        kept = await asyncio.gather(both.here.keep_at(THERE, BLOB, SECONDS), both.here.keep_at(THERE, BLOB, SECONDS))
        assert list(kept) == [True, True]
        assert both.blobs[THERE].has(BLOB)
        assert not await both.here.keep_at(THERE, BlobHash("0" * 64), SECONDS)


async def test_a_node_beyond_its_quota_takes_nothing_in(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.put(HERE)
        both.put(THERE, b"much")
        both.blobs[THERE].quota = 4
        assert not await both.here.keep_at(THERE, BLOB, SECONDS)
        found = await both.here.disk(THERE)
        assert found is not None
        assert (found.quota, found.models, found.models_bytes, found.unclaimed, found.arriving) == (4, {}, 0, 4, 0)
        here = await both.there.disk(HERE)
        assert here is not None
        assert (here.quota, here.models, here.models_bytes) == (None, {"m:1": len(DATA)}, len(DATA))
        both.blobs[THERE].quota = 5
        assert await both.here.keep_at(THERE, BLOB, SECONDS)


async def test_nobody_waits_for_a_silent_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOG_WAIT_S", 0.05)
    async with pair(tmp_path, lambda _: None) as both:
        both.put(HERE)
        assert not await both.here.keep_at(THERE, BLOB, 0.05)
        assert await both.here.log(THERE, JobId("digits-1"), {}) is None
        assert await both.here.disk(THERE) is None


async def test_logs_of_another_node_come_from_where_they_were_left(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for node in (HERE, THERE):
            directory = both.homes[node].jobs / "digits-1" / "1" / "worker-0"
            directory.mkdir(parents=True)
            (directory / "log").write_text(f"I am {node}\n")
        job = JobId("digits-1")
        assert await both.here.log(THERE, job, {}) == {"1/worker-0": (0, b"I am there\n")}
        assert await both.here.log(THERE, job, {"1/worker-0": 5}) == {"1/worker-0": (5, b"there\n")}
        assert await both.here.log(None, job, {"1/worker-0": 5}) == {"1/worker-0": (5, b"here\n")}
        assert await both.here.log(THERE, JobId("../jobs/digits-1"), {}) == {}


@pytest.mark.parametrize(
    "message",
    [
        WantChunk(BlobHash("../node.key_secret"), 0),
        WantChunk(BlobHash(""), 0),
        WantChunk(BLOB, -1),
        WantChunk(BLOB, 2**63),
        AskBlob(BlobHash("../state.sqlite"), 0),
        AskBlob(BLOB, -1),
        BlobHeld(BlobHash("x"), 0),
        BlobHeld(BLOB, 2**62),
        KeepBlob(BlobHash("/etc/passwd")),
        BlobKept(BlobHash("x"), kept=True),
        BlobChunk(BlobHash("x"), 0, b""),
        WantLog(1, JobId("digits-1"), {"1/worker-0": -1}),
    ],
    ids=lambda message: f"{type(message).__name__} {str(message)[-40:]}",
)
async def test_what_no_correct_node_says_is_refused(tmp_path: Path, message: BlobMessage) -> None:
    async with pair(tmp_path) as both:
        with pytest.raises(RemoteProtocolError):
            both.there.take(HERE, message)


async def test_questions_beyond_the_bound_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 3)
    answered: asyncio.Queue[BlobMessage] = asyncio.Queue()

    def notes(message: BlobMessage) -> None:
        answered.put_nowait(message)

    async with pair(tmp_path, notes) as both:
        for request in range(5):
            both.there.take(HERE, WantLog(request, JobId("digits-1"), {}))
        seen = [await answered.get() for _ in range(3)]
        while both.there._asked:
            await asyncio.sleep(0)
        both.there.take(HERE, WantLog(9, JobId("digits-1"), {}))
        seen.append(await answered.get())
        assert sorted(piece.request for piece in seen if isinstance(piece, LogPiece)) == [0, 1, 2, 9]
