"""Blobs and logs from node to node. The asker drives: few chunks are under way at a time, so nothing piles up."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

import msgspec

from dmi_node import clock
from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs, Catalogue, NoRoomError, is_hash
from dmi_node.storage.logs import read_logs
from dmi_node.tasks import Tasks
from dmi_node.transport.fetching import Fetching, NoSourceError
from dmi_protocol import limits
from dmi_protocol.cluster.owners import Used
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.instant import Instant, after
from dmi_protocol.messages.blobs import (
    AskBlob,
    AskDisk,
    BlobChunk,
    BlobHeld,
    BlobKept,
    BlobMessage,
    DiskUse,
    KeepBlob,
    LogPiece,
    WantChunk,
    WantLog,
)
from dmi_protocol.transfer import DIGEST_BYTES
from dmi_wire.host_memory import available_bytes

_LOG_WAIT_S = 5.0
_ASKERS_MS = 3_000
"""Who asked for a blob so short a time ago is still fetching it, or has it."""
_ASKED_FOR = 256
"""Blobs of which is remembered who asked."""
_AT_ONCE = 8
"""Chunks that are read from the disk at the same time."""
_WAITING = 1_000
"""Questions that wait their turn; further ones are dropped, as a network may, and asked again."""
_FARTHEST = 2**62
_READING_S = 0.2
"""Who asks for a blob that is being read is answered after so long, whatever has been read."""

Value = TypeVar("Value")
Send = Callable[[NodeId, BlobMessage], None]
Owned = Callable[[Mapping[BlobHash, int]], Used]
Pin = Callable[[BlobHash], Awaitable[None]]


class Library:
    """This node's blobs and logs, and those of the others through it."""

    def __init__(self, me: NodeId, home: Home, blobs: Blobs, tasks: Tasks, send: Send, pin: Pin, used: Owned) -> None:
        self._me = me
        self._home = home
        self._blobs = blobs
        self._tasks = tasks
        self._send = send
        self._pin = pin
        self._used = used
        self._askers: dict[BlobHash, dict[NodeId, Instant]] = {}
        self._catalogues: dict[BlobHash, asyncio.Task[Catalogue | None]] = {}
        """Of those that are being read for others."""
        self._kept: dict[tuple[NodeId, BlobHash], asyncio.Future[bool]] = {}
        self._disks: dict[tuple[NodeId, int], asyncio.Future[DiskUse]] = {}
        self._logs: dict[int, asyncio.Future[LogPiece]] = {}
        self._fetching: dict[BlobHash, tuple[Fetching, asyncio.Task[None]]] = {}
        self._requests = 0
        self._asked = 0
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def take(self, sender: NodeId, message: BlobMessage) -> None:
        """Another node asks or answers. Raises ``RemoteProtocolError`` for what no correct node says."""
        _check(message)
        match message:
            case AskBlob(blob, known):
                self._serve(self._say_what_is_held(sender, blob, known), "blob held")
            case WantChunk(blob, index):
                self._serve(self._give_chunk(sender, blob, index), "blob chunk")
            case BlobHeld(blob) | BlobChunk(blob):
                if blob in self._fetching:
                    self._fetching[blob][0].take(sender, message)
            case KeepBlob(blob):
                self._serve(self._keep(sender, blob), "keep blob")
            case BlobKept(blob, kept):
                _resolve(self._kept.get((sender, blob)), kept)
            case WantLog(request, job, offsets):
                self._serve(self._give_log(sender, request, job, offsets), "log piece")
            case LogPiece(request):
                _resolve(self._logs.get(request), message)
            case AskDisk(request):
                self._serve(self._say_disk_use(sender, request), "disk use")
            case DiskUse(request):
                _resolve(self._disks.get((sender, request)), message)

    def _serve(self, work: Coroutine[None, None, None], name: str) -> None:
        if self._asked >= _WAITING:
            work.close()
            return
        self._asked += 1
        self._tasks.start(work, name).add_done_callback(lambda _: self._served())

    def _served(self) -> None:
        self._asked -= 1

    async def _say_what_is_held(self, to: NodeId, blob: BlobHash, known: int) -> None:
        now = clock.now()
        peers = self._peers(now, to, blob)
        if blob in self._fetching:
            held = self._fetching[blob][0].held(known)
        else:
            held = await self._whole(blob, known)
        self._send(to, msgspec.structs.replace(held, peers=peers))

    def _peers(self, now: Instant, asker: NodeId, blob: BlobHash) -> tuple[NodeId, ...]:
        """Others who fetch it now: they have some of it, too."""
        askers = self._askers.pop(blob, {})
        fresh = {node: at for node, at in askers.items() if now < after(at, _ASKERS_MS) and node != asker}
        self._askers[blob] = {**fresh, asker: now}
        while len(self._askers) > _ASKED_FOR:
            del self._askers[next(iter(self._askers))]
        return tuple(list(fresh)[-limits.BLOB_PEERS :])

    async def _whole(self, blob: BlobHash, known: int) -> BlobHeld:
        """What is said of a blob that lies here whole. Its bytes are read before they are given; until that is done, the size
        alone is said."""
        size = self._blobs.size(blob)
        if size is None:
            return BlobHeld(blob, -1)
        if blob not in self._catalogues:
            reading = asyncio.ensure_future(asyncio.to_thread(self._blobs.catalogue, blob))
            self._catalogues[blob] = reading
            reading.add_done_callback(lambda done: self._has_read(blob, done))
        reading = self._catalogues[blob]
        await asyncio.wait([reading], timeout=_READING_S)
        if not reading.done():
            return BlobHeld(blob, size)
        catalogue = None if reading.exception() is not None else reading.result()
        if catalogue is None:
            return BlobHeld(blob, -1)
        digests = catalogue.digests[known * DIGEST_BYTES :][: limits.BLOB_DIGESTS * DIGEST_BYTES]
        return BlobHeld(blob, catalogue.size, None, digests)

    def _has_read(self, blob: BlobHash, reading: "asyncio.Task[Catalogue | None]") -> None:
        """Who asked may not have waited for it: what went wrong is said to the next one."""
        self._catalogues.pop(blob, None)
        if not reading.cancelled():
            reading.exception()

    async def _give_chunk(self, to: NodeId, blob: BlobHash, index: int) -> None:
        async with self._turns:
            fetching = self._fetching.get(blob)
            read = self._blobs.chunk if fetching is None else lambda _, index: fetching[0].chunk(index)
            try:
                data = await asyncio.to_thread(read, blob, index)
            except OSError:
                data = b""
            self._send(to, BlobChunk(blob, index, data))

    async def _give_log(self, to: NodeId, request: int, job: JobId, offsets: dict[str, int]) -> None:
        async with self._turns:
            try:
                texts = await asyncio.to_thread(read_logs, self._home.job(job), offsets)
            except OSError:
                texts = {}
            self._send(to, LogPiece(request, texts))

    async def _say_disk_use(self, to: NodeId, request: int) -> None:
        async with self._turns:
            with contextlib.suppress(OSError):
                self._send(to, await self.disk_here(request))

    async def disk_here(self, request: int = 0) -> DiskUse:
        """How full this node's disk is, and of what. Raises ``OSError``."""
        return _disk_use(request, *await asyncio.to_thread(self._measured), self._used, self._blobs.quota)

    def _measured(self) -> "tuple[dict[BlobHash, int], int, shutil._ntuple_diskusage]":
        return self._blobs.sizes(), self._blobs.arriving(), shutil.disk_usage(self._home.blobs)

    async def disk(self, node: NodeId) -> DiskUse | None:
        """The same of another node; None when it does not answer in time."""
        self._requests += 1
        key = node, self._requests
        waited: asyncio.Future[DiskUse] = asyncio.get_running_loop().create_future()
        self._disks[key] = waited
        try:
            self._send(node, AskDisk(key[1]))
            return await asyncio.wait_for(waited, _LOG_WAIT_S)
        except TimeoutError:
            return None
        finally:
            self._disks.pop(key, None)

    async def _keep(self, sender: NodeId, blob: BlobHash) -> None:
        try:
            await self._pin(blob)
            if not self._blobs.has(blob):
                await asyncio.to_thread(self._blobs.check_room, 1)
            await self.fetch(blob, [sender])
        except (NoSourceError, NoRoomError, OSError):
            self._send(sender, BlobKept(blob, kept=False))
        else:
            self._send(sender, BlobKept(blob, kept=True))

    async def fetch(self, blob: BlobHash, sources: Sequence[NodeId]) -> None:
        """Bring the blob here, if it is not, or not as it was. Raises ``NoSourceError``; ``OSError`` is the disk's."""
        if await asyncio.to_thread(self._blobs.is_whole, blob):
            return
        if not is_hash(blob):
            raise NoSourceError(f"{blob[:80]!r} is no SHA-256")
        if blob in self._fetching:
            self._fetching[blob][0].add(sources)
        else:
            fetching = Fetching(self._me, blob, self._blobs, sources, self._send)
            task = asyncio.ensure_future(fetching.run())
            self._fetching[blob] = fetching, task
            task.add_done_callback(lambda _: self._fetching.pop(blob, None))
        await asyncio.shield(self._fetching[blob][1])

    async def keep_at(self, node: NodeId, blob: BlobHash, within_s: float) -> bool:
        """Ask another node to fetch a blob from us; True once it is durable there."""
        waited = self._kept.setdefault((node, blob), asyncio.get_running_loop().create_future())
        try:
            self._send(node, KeepBlob(blob))
            return await asyncio.wait_for(asyncio.shield(waited), within_s)
        except TimeoutError:
            return False
        finally:
            self._kept.pop((node, blob), None)

    async def log(
        self, node: NodeId | None, job: JobId, offsets: dict[str, int]
    ) -> dict[str, tuple[int, bytes]] | None:
        """What the role processes of ``job`` on ``node`` (None: here) wrote from ``offsets`` on; None when it does not answer in
        time."""
        if node is None:
            return await asyncio.to_thread(read_logs, self._home.job(job), offsets)
        self._requests += 1
        waited: asyncio.Future[LogPiece] = asyncio.get_running_loop().create_future()
        self._logs[self._requests] = waited
        request = self._requests
        try:
            self._send(node, WantLog(request, job, offsets))
            return (await asyncio.wait_for(waited, _LOG_WAIT_S)).texts
        except TimeoutError:
            return None
        finally:
            self._logs.pop(request, None)


def _disk_use(
    request: int,
    sizes: Mapping[BlobHash, int],
    arriving: int,
    disk: "shutil._ntuple_diskusage",
    used: Owned,
    quota: int | None,
) -> DiskUse:
    found = used(sizes)
    models, jobs = (
        dict(sorted(owned.items(), key=lambda item: -item[1])[: limits.DISK_OWNERS])
        for owned in (found.models, found.jobs)
    )
    sums = sum(found.models.values()), sum(found.jobs.values())
    unclaimed, memory = found.unclaimed, available_bytes()
    return DiskUse(request, disk.total, disk.free, quota, models, jobs, *sums, arriving, unclaimed, memory)


def _check(message: BlobMessage) -> None:
    """Names of files and places in them come from the network: neither may lead anywhere but where it should."""
    match message:
        case AskBlob(blob) | BlobHeld(blob) | WantChunk(blob) | BlobChunk(blob) | KeepBlob(blob) | BlobKept(blob) if (
            not is_hash(blob)
        ):
            raise RemoteProtocolError(f"a blob is named {blob[:80]!r}")
        case AskBlob(_, number) | WantChunk(_, number) if not 0 <= number <= _FARTHEST // limits.BLOB_CHUNK_BYTES:
            raise RemoteProtocolError(f"chunk {number} of a blob")
        case BlobHeld(_, total) if total > limits.MODEL_BYTES:
            raise RemoteProtocolError(f"a blob of {total} bytes")
        case WantLog(_, _, offsets) if not all(0 <= offset <= _FARTHEST for offset in offsets.values()):
            raise RemoteProtocolError("a log is wanted from nowhere")


def _resolve(waited: "asyncio.Future[Value] | None", value: Value) -> None:
    if waited is not None and not waited.done():
        waited.set_result(value)
