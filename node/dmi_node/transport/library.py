"""Blobs and logs from node to node. The asker drives: one piece is under way at a time, so nothing piles up."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs, WrongHashError
from dmi_node.storage.logs import read_logs
from dmi_node.tasks import Tasks
from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.messages.blobs import BlobKept, BlobMessage, BlobPiece, KeepBlob, LogPiece, WantBlob, WantLog

_PIECE_WAIT_S = 5.0
_TRIES = 3

Value = TypeVar("Value")
Send = Callable[[NodeId, BlobMessage], None]


class NoSourceError(Exception):
    """Nobody could give the blob. The text says why."""


class Library:
    """This node's blobs and logs, and those of the others through it."""

    def __init__(self, home: Home, blobs: Blobs, tasks: Tasks, send: Send) -> None:
        self._home = home
        self._blobs = blobs
        self._tasks = tasks
        self._send = send
        self._pieces: dict[tuple[NodeId, BlobHash, int], asyncio.Future[BlobPiece]] = {}
        self._kept: dict[tuple[NodeId, BlobHash], asyncio.Future[bool]] = {}
        self._logs: dict[int, asyncio.Future[LogPiece]] = {}
        self._fetching: dict[BlobHash, asyncio.Task[None]] = {}
        self._requests = 0

    def take(self, sender: NodeId, message: BlobMessage) -> None:
        """Another node asks or answers."""
        match message:
            case WantBlob(blob, offset):
                self._tasks.start(self._give_piece(sender, blob, offset), "blob piece")
            case BlobPiece(blob, offset):
                _resolve(self._pieces.get((sender, blob, offset)), message)
            case KeepBlob(blob):
                self._tasks.start(self._keep(sender, blob), "keep blob")
            case BlobKept(blob, kept):
                _resolve(self._kept.get((sender, blob)), kept)
            case WantLog(request, job, offsets):
                self._tasks.start(self._give_log(sender, request, job, offsets), "log piece")
            case LogPiece(request):
                _resolve(self._logs.get(request), message)

    async def _give_piece(self, to: NodeId, blob: BlobHash, offset: int) -> None:
        total, data = await asyncio.to_thread(self._blobs.read, blob, offset, limits.CHUNK_BYTES)
        self._send(to, BlobPiece(blob, offset, total, data))

    async def _give_log(self, to: NodeId, request: int, job: JobId, offsets: dict[str, int]) -> None:
        texts = await asyncio.to_thread(read_logs, self._home.job(job), offsets)
        self._send(to, LogPiece(request, texts))

    async def _keep(self, sender: NodeId, blob: BlobHash) -> None:
        try:
            await self.fetch(blob, [sender])
        except (NoSourceError, OSError):
            self._send(sender, BlobKept(blob, kept=False))
        else:
            self._send(sender, BlobKept(blob, kept=True))

    async def fetch(self, blob: BlobHash, sources: Sequence[NodeId]) -> None:
        """Bring the blob here, if it is not. Raises ``NoSourceError``; ``OSError`` is the disk's."""
        if self._blobs.has(blob):
            return
        if blob not in self._fetching:
            task = asyncio.ensure_future(self._fetch(blob, sources))
            self._fetching[blob] = task
            task.add_done_callback(lambda _: self._fetching.pop(blob, None))
        await asyncio.shield(self._fetching[blob])

    async def _fetch(self, blob: BlobHash, sources: Sequence[NodeId]) -> None:
        why = "no node that has it is known"
        for source in list(sources) * _TRIES:
            try:
                await self._fetch_from(blob, source)
            except (TimeoutError, WrongHashError, NoSourceError) as error:
                why = str(error) or f"{source} did not answer"
            else:
                return
        raise NoSourceError(why)

    async def _fetch_from(self, blob: BlobHash, source: NodeId) -> None:
        path = self._blobs.incoming(blob)
        offset, total = 0, 1
        with path.open("wb") as file:
            while offset < total:
                piece = await self._piece(source, blob, offset)
                if piece.total < 0 or (offset < piece.total and not piece.data):
                    raise NoSourceError(f"{source} does not have it")
                await asyncio.to_thread(file.write, piece.data)
                offset, total = offset + len(piece.data), piece.total
        await asyncio.to_thread(self._blobs.adopt, path, blob)

    async def _piece(self, source: NodeId, blob: BlobHash, offset: int) -> BlobPiece:
        waited = self._pieces.setdefault((source, blob, offset), asyncio.get_running_loop().create_future())
        try:
            self._send(source, WantBlob(blob, offset))
            return await asyncio.wait_for(asyncio.shield(waited), _PIECE_WAIT_S)
        finally:
            self._pieces.pop((source, blob, offset), None)

    async def keep_at(self, node: NodeId, blob: BlobHash, within_s: float) -> bool:
        """Ask another node to fetch a blob from us; True once it is durable there."""
        waited: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._kept[node, blob] = waited
        try:
            self._send(node, KeepBlob(blob))
            return await asyncio.wait_for(waited, within_s)
        except TimeoutError:
            return False
        finally:
            self._kept.pop((node, blob), None)

    async def log(self, node: NodeId | None, job: JobId, offsets: dict[str, int]) -> dict[str, tuple[int, bytes]]:
        """What the role processes of ``job`` on ``node`` (None: here) wrote from ``offsets`` on; nothing when it does
        not answer in time."""
        if node is None:
            return await asyncio.to_thread(read_logs, self._home.job(job), offsets)
        self._requests += 1
        waited: asyncio.Future[LogPiece] = asyncio.get_running_loop().create_future()
        self._logs[self._requests] = waited
        request = self._requests
        try:
            self._send(node, WantLog(request, job, offsets))
            return (await asyncio.wait_for(waited, _PIECE_WAIT_S)).texts
        except TimeoutError:
            return {}
        finally:
            self._logs.pop(request, None)


def _resolve(waited: "asyncio.Future[Value] | None", value: Value) -> None:
    if waited is not None and not waited.done():
        waited.set_result(value)
