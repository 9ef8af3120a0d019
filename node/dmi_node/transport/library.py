"""Blobs and logs from node to node. The asker drives: one piece is under way at a time, so nothing piles up."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TypeVar

from dmi_node.home import Home
from dmi_node.storage.blobs import Blobs, WrongHashError, is_hash
from dmi_node.storage.logs import read_logs
from dmi_node.tasks import Tasks
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.messages.blobs import BlobKept, BlobMessage, BlobPiece, KeepBlob, LogPiece, WantBlob, WantLog

_PIECE_WAIT_S = 5.0
_TRIES = 3
_BETWEEN_TRIES_S = 0.5
_AT_ONCE = 8
"""Pieces that are read from the disk at the same time."""
_WAITING = 1_000
"""Questions that wait their turn; further ones are dropped, as a network may, and asked again."""
_FARTHEST = 2**62

Value = TypeVar("Value")
Send = Callable[[NodeId, BlobMessage], None]
Pin = Callable[[BlobHash], Awaitable[None]]


class NoSourceError(Exception):
    """Nobody could give the blob. The text says why."""


class Library:
    """This node's blobs and logs, and those of the others through it."""

    def __init__(self, home: Home, blobs: Blobs, tasks: Tasks, send: Send, pin: Pin) -> None:
        self._home = home
        self._blobs = blobs
        self._tasks = tasks
        self._send = send
        self._pin = pin
        self._pieces: dict[tuple[NodeId, BlobHash, int], asyncio.Future[BlobPiece]] = {}
        self._kept: dict[tuple[NodeId, BlobHash], asyncio.Future[bool]] = {}
        self._logs: dict[int, asyncio.Future[LogPiece]] = {}
        self._fetching: dict[BlobHash, asyncio.Task[None]] = {}
        self._requests = 0
        self._asked = 0
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def take(self, sender: NodeId, message: BlobMessage) -> None:
        """Another node asks or answers. Raises ``RemoteProtocolError`` for what no correct node says."""
        _check(message)
        match message:
            case WantBlob(blob, offset):
                self._serve(self._give_piece(sender, blob, offset), "blob piece")
            case BlobPiece(blob, offset):
                _resolve(self._pieces.get((sender, blob, offset)), message)
            case KeepBlob(blob):
                self._serve(self._keep(sender, blob), "keep blob")
            case BlobKept(blob, kept):
                _resolve(self._kept.get((sender, blob)), kept)
            case WantLog(request, job, offsets):
                self._serve(self._give_log(sender, request, job, offsets), "log piece")
            case LogPiece(request):
                _resolve(self._logs.get(request), message)

    def _serve(self, work: Coroutine[None, None, None], name: str) -> None:
        if self._asked >= _WAITING:
            work.close()
            return
        self._asked += 1
        self._tasks.start(work, name).add_done_callback(lambda _: self._served())

    def _served(self) -> None:
        self._asked -= 1

    async def _give_piece(self, to: NodeId, blob: BlobHash, offset: int) -> None:
        async with self._turns:
            try:
                total, data = await asyncio.to_thread(self._blobs.read, blob, offset, limits.CHUNK_BYTES)
            except OSError:
                total, data = -1, b""
            self._send(to, BlobPiece(blob, offset, total, data))

    async def _give_log(self, to: NodeId, request: int, job: JobId, offsets: dict[str, int]) -> None:
        async with self._turns:
            try:
                texts = await asyncio.to_thread(read_logs, self._home.job(job), offsets)
            except OSError:
                texts = {}
            self._send(to, LogPiece(request, texts))

    async def _keep(self, sender: NodeId, blob: BlobHash) -> None:
        try:
            await self._pin(blob)
            await self.fetch(blob, [sender])
        except (NoSourceError, OSError):
            self._send(sender, BlobKept(blob, kept=False))
        else:
            self._send(sender, BlobKept(blob, kept=True))

    async def fetch(self, blob: BlobHash, sources: Sequence[NodeId]) -> None:
        """Bring the blob here, if it is not, or not as it was. Raises ``NoSourceError``; ``OSError`` is the disk's."""
        if await asyncio.to_thread(self._blobs.is_whole, blob):
            return
        if not is_hash(blob):
            raise NoSourceError(f"{blob[:80]!r} is no SHA-256")
        if blob not in self._fetching:
            task = asyncio.ensure_future(self._fetch(blob, sources))
            self._fetching[blob] = task
            task.add_done_callback(lambda _: self._fetching.pop(blob, None))
        await asyncio.shield(self._fetching[blob])

    async def _fetch(self, blob: BlobHash, sources: Sequence[NodeId]) -> None:
        why = "no node that has it is known"
        for _ in range(_TRIES):
            for source in sources:
                try:
                    await self._fetch_from(blob, source)
                except (TimeoutError, WrongHashError, NoSourceError) as error:
                    why = str(error) or f"{source} did not answer"
                else:
                    return
            await asyncio.sleep(_BETWEEN_TRIES_S)  # whoever wants it very much asks again at once
        raise NoSourceError(why)

    async def _fetch_from(self, blob: BlobHash, source: NodeId) -> None:
        path = self._blobs.incoming(blob)
        try:
            with path.open("wb") as file:
                piece = await self._piece(source, blob, 0)
                total, offset = piece.total, len(piece.data)
                while True:
                    if piece.total < 0 or (offset < total and not piece.data):
                        raise NoSourceError(f"{source} does not have it")
                    if piece.total != total or offset > total:
                        raise NoSourceError(f"{source} does not know how long it is")
                    await asyncio.to_thread(file.write, piece.data)
                    if offset == total:
                        break
                    piece = await self._piece(source, blob, offset)
                    offset += len(piece.data)
            await asyncio.to_thread(self._blobs.adopt, path, blob)
        finally:
            path.unlink(missing_ok=True)

    async def _piece(self, source: NodeId, blob: BlobHash, offset: int) -> BlobPiece:
        waited = self._pieces.setdefault((source, blob, offset), asyncio.get_running_loop().create_future())
        try:
            self._send(source, WantBlob(blob, offset))
            return await asyncio.wait_for(asyncio.shield(waited), _PIECE_WAIT_S)
        finally:
            self._pieces.pop((source, blob, offset), None)

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


def _check(message: BlobMessage) -> None:
    """Names of files and places in them come from the network: neither may lead anywhere but where it should."""
    match message:
        case WantBlob(blob) | BlobPiece(blob) | KeepBlob(blob) | BlobKept(blob) if not is_hash(blob):
            raise RemoteProtocolError(f"a blob is named {blob[:80]!r}")
        case WantBlob(_, offset) if not 0 <= offset <= _FARTHEST:
            raise RemoteProtocolError(f"a piece at {offset}")
        case WantLog(_, _, offsets) if not all(0 <= offset <= _FARTHEST for offset in offsets.values()):
            raise RemoteProtocolError("a log is wanted from nowhere")


def _resolve(waited: "asyncio.Future[Value] | None", value: Value) -> None:
    if waited is not None and not waited.done():
        waited.set_result(value)
