"""Nodes that fetch one blob from one another in virtual time: each has a link of so many bytes a second each way."""

import heapq
import random
from collections.abc import Callable, Iterable

from msgspec import Struct, field

from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.messages.blobs import AskBlob, BlobChunk, BlobHeld, WantChunk
from dmi_protocol.transfer import DIGEST_BYTES, Transfer

BLOB = BlobHash("b" * 64)
ONE_WAY_MS = 1
ASKERS_MS = 3_000


class Host(Struct):
    """``transfer`` is None for one that has all of it from the start."""

    transfer: Transfer | None = None
    is_dead: bool = False
    is_liar: bool = False
    free_up_at: float = 0
    free_down_at: float = 0
    looks_at: float = 0
    done_at: Instant | None = None
    why: str = ""
    askers: dict[NodeId, float] = field(default_factory=dict)
    sent: int = 0
    """Chunks that it gave to others."""


class Swarm:
    """Of ``fetchers`` nodes, and ``holders`` that have all ``chunks``. ``bytes_per_ms`` is what a link takes each way."""

    def __init__(self, seed: int, holders: int, fetchers: int, chunks: int, bytes_per_ms: int = 25_000) -> None:
        self.chance = random.Random(seed)
        self.size = chunks * limits.BLOB_CHUNK_BYTES - 7
        self.rate = bytes_per_ms
        self.loss = 0.0
        self.hosts = {NodeId(f"h{n}"): Host() for n in range(holders)}
        sources = list(self.hosts)
        for n in range(fetchers):
            node = NodeId(f"f{n}")
            self.hosts[node] = Host(Transfer(node, BLOB, sources, random.Random(self.chance.random())))
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def digest(self, index: int) -> bytes:
        return index.to_bytes(DIGEST_BYTES, "big")

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something then."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, what))

    def run(self, until_ms: float = 600_000) -> None:
        """Until all who live have the blob, or have given up."""
        for node, host in self.hosts.items():
            if host.transfer is not None:
                self._look(node)
        while self._queue and self._queue[0][0] <= until_ms and not self.is_over:
            self.now, _, what = heapq.heappop(self._queue)
            what()

    @property
    def is_over(self) -> bool:
        return all(host.is_dead or host.why or host.done_at is not None for host in self.fetching())

    def fetching(self) -> Iterable[Host]:
        """Those who did not have it."""
        return [host for host in self.hosts.values() if host.transfer is not None]

    def _instant(self) -> Instant:
        return Instant(int(self.now))

    def _look(self, node: NodeId) -> None:
        host = self.hosts[node]
        if host.is_dead or host.transfer is None or host.done_at is not None or host.why:
            return
        if host.transfer.is_done:
            host.done_at = self._instant()
            return
        if host.transfer.failed(self._instant()):
            host.why = host.transfer.why
            return
        for question in host.transfer.questions(self._instant()):
            self._send(node, question.source, question.message)
        deadline = host.transfer.deadline()
        if deadline is not None and not self.now < host.looks_at <= deadline:
            host.looks_at = max(self.now + 1, deadline)
            self.at(host.looks_at, lambda: self._look(node))

    def _send(self, source: NodeId, to: NodeId, message: AskBlob | BlobHeld | WantChunk | BlobChunk) -> None:
        if self.chance.random() < self.loss:
            return
        size = len(message.data) if isinstance(message, BlobChunk) else 100
        out, into = self.hosts[source], self.hosts[to]
        out.free_up_at = max(self.now, out.free_up_at) + size / self.rate
        into.free_down_at = max(out.free_up_at + ONE_WAY_MS, into.free_down_at + size / self.rate)
        self.at(into.free_down_at, lambda: self._receive(source, to, message))

    def _receive(self, source: NodeId, me: NodeId, message: AskBlob | BlobHeld | WantChunk | BlobChunk) -> None:
        host = self.hosts[me]
        if host.is_dead:
            return
        transfer = host.transfer
        match message:
            case AskBlob(_, known):
                host.askers[source] = self.now
                self._send(me, source, self._held(host, source, known))
            case WantChunk(_, index):
                has = transfer is None or transfer.has(index)
                host.sent += has
                data = bytes(min(limits.BLOB_CHUNK_BYTES, self.size - index * limits.BLOB_CHUNK_BYTES)) if has else b""
                self._send(me, source, BlobChunk(BLOB, index, data))
            case BlobHeld() if transfer is not None:
                transfer.answered(self._instant(), source, message)
            case BlobChunk(_, index, data) if transfer is not None and transfer.expects(source, index):
                if self.hosts[source].is_liar:
                    transfer.damaged(self._instant(), source, index)
                elif data:
                    transfer.came(self._instant(), source, index)
                else:
                    transfer.lacked(self._instant(), source, index)
            case _:
                pass
        self._look(me)

    def _held(self, host: Host, source: NodeId, known: int) -> BlobHeld:
        peers = tuple(n for n, at in host.askers.items() if n != source and self.now - at < ASKERS_MS)
        transfer = host.transfer
        count = -(-self.size // limits.BLOB_CHUNK_BYTES)
        if transfer is None:
            digests = b"".join(self.digest(n) for n in range(known, min(count, known + limits.BLOB_DIGESTS)))
            return BlobHeld(BLOB, self.size, None, digests, peers)
        if transfer.total is None:
            return BlobHeld(BLOB, -1, peers=peers)
        chunks = None if transfer.is_done else transfer.here
        return BlobHeld(BLOB, transfer.total, chunks, transfer.digests[known * DIGEST_BYTES :], peers)
