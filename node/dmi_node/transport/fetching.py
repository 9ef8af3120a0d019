"""One blob on its way to this node: ``transfer.py`` decides, this asks, checks and writes."""

import asyncio
import hashlib
import random
import secrets
from collections.abc import Callable, Container, Iterable, Iterator

from dmi_node import clock
from dmi_node.storage.blobs import Blobs, WrongHashError
from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.messages.blobs import AskBlob, BlobChunk, BlobHeld, WantChunk
from dmi_protocol.transfer import DIGEST_BYTES, SOURCES, Transfer

Send = Callable[[NodeId, AskBlob | WantChunk], None]
_VERSIONS = 2
"""Of so many versions that are here it is looked at what need not come again."""
_WAITING = SOURCES * (limits.BLOB_CHUNKS_ASKED + 1)


class NoSourceError(Exception):
    """Nobody could give the blob. The text says why."""


class Fetching:
    """Of ``blob`` to the node ``me``. What came before a transfer was cut stays beside the blobs, and is not asked for again."""

    def __init__(self, me: NodeId, blob: BlobHash, blobs: Blobs, sources: Iterable[NodeId], send: Send) -> None:
        self._me = me
        self._blob = blob
        self._blobs = blobs
        self._path = blobs.incoming(blob)
        self._sources = set(sources)
        self._send = send
        self._heard: asyncio.Queue[tuple[NodeId, BlobHeld | BlobChunk]] = asyncio.Queue(_WAITING)
        self._transfer = self._begin(())

    def _begin(self, without: Iterable[NodeId]) -> Transfer:
        left = sorted(self._sources - set(without))
        return Transfer(self._me, self._blob, left, random.Random(secrets.randbits(64)))

    # What others ask, meanwhile

    def held(self, known: int) -> BlobHeld:
        """What is here already, for others who fetch it, too."""
        transfer = self._transfer
        if transfer.total is None:
            return BlobHeld(self._blob, -1)
        digests = transfer.digests[known * DIGEST_BYTES :][: limits.BLOB_DIGESTS * DIGEST_BYTES]
        return BlobHeld(self._blob, transfer.total, transfer.here, digests)

    def chunk(self, index: int) -> bytes:
        """A chunk, for others; nothing when it is not here yet."""
        if not self._transfer.has(index):
            return b""
        with self._path.open("rb") as file:
            file.seek(index * limits.BLOB_CHUNK_BYTES)
            return file.read(limits.BLOB_CHUNK_BYTES)

    # What comes

    def add(self, sources: Iterable[NodeId]) -> None:
        """Further nodes have it."""
        self._sources |= set(sources)
        self._transfer.add(self._sources)

    def take(self, sender: NodeId, message: BlobHeld | BlobChunk) -> None:
        """An answer. What is too much is dropped, as a network may, and asked for again."""
        if not self._heard.full():
            self._heard.put_nowait((sender, message))

    async def run(self) -> None:
        """Until the blob is here. Raises ``NoSourceError``; ``OSError`` is the disk's."""
        wrong: set[NodeId] = set()
        try:
            while True:
                try:
                    return await self._bring()
                except (NoSourceError, WrongHashError) as error:
                    doubted = self._transfer.catalogued - wrong
                    may_be_theirs = isinstance(error, WrongHashError) or self._transfer.is_contradicted
                    wrong |= doubted
                    if not (doubted and may_be_theirs and self._sources - wrong):
                        raise NoSourceError(str(error)) from error
                self._transfer = self._begin(wrong)  # who gave the digests may have been the one who was wrong
        except OSError:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
            raise

    async def _bring(self) -> None:
        transfer = self._transfer
        is_looked_through = False
        while not transfer.is_done:
            now = clock.now()
            if transfer.failed(now):
                if not any(transfer.here):
                    await asyncio.to_thread(self._path.unlink, missing_ok=True)
                raise NoSourceError(transfer.why)
            for question in transfer.questions(now):
                self._send(question.source, question.message)
            await self._hear()
            if transfer.is_catalogued and not is_looked_through:
                is_looked_through = True
                for index in await asyncio.to_thread(self._look_through):
                    transfer.found(index)
        await asyncio.to_thread(self._blobs.adopt, self._path, self._blob, transfer.digests)

    def _look_through(self) -> set[int]:
        """Which chunks are here since an earlier time, or are those of a version of the same size; the file gets its size."""
        transfer, size = self._transfer, self._transfer.total or 0
        self._path.touch()
        with self._path.open("r+b") as file:
            if file.seek(0, 2) != size:
                file.truncate(0)
                file.truncate(size)
                here = set[int]()
            else:
                file.seek(0)
                chunks = iter(lambda: file.read(limits.BLOB_CHUNK_BYTES), b"")
                here = {n for n, chunk in enumerate(chunks) if hashlib.sha256(chunk).digest() == transfer.digest(n)}
        for other in self._blobs.of_size(size, self._blob)[:_VERSIONS] if size else ():
            here |= self._write(self._alike(other, here))
        return here

    def _alike(self, other: BlobHash, here: Container[int]) -> Iterator[BlobChunk]:
        """The chunks of another blob that are the same at the same place, and not ``here`` yet."""
        catalogue = self._blobs.catalogue(other)
        for index in range(self._transfer.chunks if catalogue is not None else 0):
            theirs = catalogue.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] if catalogue else b""
            if index not in here and theirs == self._transfer.digest(index):
                yield BlobChunk(self._blob, index, self._blobs.chunk(other, index))

    async def _hear(self) -> None:
        """What has come by now, or until there is something, or something is to be asked."""
        deadline = self._transfer.deadline()
        try:
            async with asyncio.timeout(None if deadline is None else max(0, deadline - clock.now()) / 1000):
                heard = [await self._heard.get()]
        except TimeoutError:
            return
        while not self._heard.empty():
            heard.append(self._heard.get_nowait())
        now, transfer = clock.now(), self._transfer
        chunks: list[tuple[NodeId, BlobChunk]] = []
        for sender, message in heard:
            if isinstance(message, BlobHeld):
                transfer.answered(now, sender, message)
            elif transfer.expects(sender, message.index):
                chunks.append((sender, message))
        if not chunks:
            return
        right = await asyncio.to_thread(self._write, [chunk for _, chunk in chunks if chunk.data])
        now = clock.now()
        for sender, chunk in chunks:
            if chunk.index in right:
                transfer.came(now, sender, chunk.index)
            elif chunk.data:
                transfer.damaged(now, sender, chunk.index)
            else:
                transfer.lacked(now, sender, chunk.index)

    def _write(self, chunks: Iterable[BlobChunk]) -> set[int]:
        """Those that are right go to the disk; gives which."""
        right = set()
        with self._path.open("r+b") as file:
            for chunk in chunks:
                if hashlib.sha256(chunk.data).digest() == self._transfer.digest(chunk.index):
                    file.seek(chunk.index * limits.BLOB_CHUNK_BYTES)
                    file.write(chunk.data)
                    right.add(chunk.index)
        return right
