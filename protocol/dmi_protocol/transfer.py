"""How one blob comes to this node: which chunk is asked of whom.

Everybody who has it, or some of it, is asked at once, a few chunks each; a chunk that only a whole copy has goes before one that
others who are fetching have, too, so that whoever has the blob sends each chunk about once, however many fetch it (the idea of
rarest first, B. Cohen, "Incentives build robustness in BitTorrent", 2003).
"""

from collections.abc import Iterable
from random import Random

from msgspec import Struct, field

from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.messages.blobs import AskBlob, BlobHeld, WantChunk

DIGEST_BYTES = 32
POLL_MS = 500
"""So often a source is asked what it has by now, while it lacks something that is wanted, or may know of others."""
SILENT_MS = 5_000
"""Who has not answered for so long is not waited for."""
LATE_MS = 1_000
"""A chunk that is under way for so long is asked of another source too, when there is nothing else to ask for."""
SOURCES = 64
STALLED_MS = 30_000
"""So long without anything new, and it is given up: those who answer lack the same chunks."""


class Question(Struct, frozen=True):
    """Ask ``source``."""

    source: NodeId
    message: AskBlob | WantChunk


class _Source(Struct):
    polled_at: Instant | None = None
    waits_since: Instant | None = None
    """Since when it owes an answer; None when it owes none."""
    has: int = 0
    """Its chunks, as a number with a bit for each."""
    is_whole: bool = False
    says_none: bool = False
    wrong: str = ""
    asked: dict[int, Instant] = field(default_factory=dict)
    """Chunks that it was asked for, and when."""


class Transfer:
    """Of ``blob`` to the node ``me`` from ``sources``. ``chance`` breaks ties."""

    def __init__(self, me: NodeId, blob: BlobHash, sources: Iterable[NodeId], chance: Random) -> None:
        self.me = me
        self.blob = blob
        self.total: int | None = None
        """The size in bytes, once somebody has said it."""
        self.digests = b""
        self.catalogued: set[NodeId] = set()
        """Who gave the digests."""
        self.why = "no node that has it is known"
        """Why nobody gives it, or the last chunk."""
        self._chance = chance
        self._sources: dict[NodeId, _Source] = {}
        self._here = 0
        self._asked: dict[int, int] = {}
        """How many sources were asked for a chunk that is under way."""
        self._news_at: Instant | None = None
        self.add(sources)

    # What is known

    @property
    def chunks(self) -> int:
        """How many the blob has."""
        return -(-(self.total or 0) // limits.BLOB_CHUNK_BYTES)

    @property
    def is_catalogued(self) -> bool:
        """Are the digests of all chunks known?"""
        return self.total is not None and len(self.digests) == DIGEST_BYTES * self.chunks

    @property
    def is_done(self) -> bool:
        """Are all chunks here?"""
        return self.is_catalogued and self._here == _ones(self.chunks)

    @property
    def here(self) -> bytes:
        """A bit for each chunk that is here, as in ``BlobHeld.chunks``."""
        return self._here.to_bytes((self.chunks + 7) // 8, "little")

    @property
    def is_contradicted(self) -> bool:
        """Did a source send what does not fit what another one said?"""
        return any(source.wrong for source in self._sources.values())

    def has(self, index: int) -> bool:
        """Is this chunk here?"""
        return bool(self._here >> index & 1)

    def digest(self, index: int) -> bytes:
        """The SHA-256 of a chunk."""
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def expects(self, source: NodeId, index: int) -> bool:
        """Was this chunk asked of this source, and is it still of use?"""
        return source in self._sources and index in self._sources[source].asked and not self.has(index)

    # What happens

    def add(self, sources: Iterable[NodeId]) -> None:
        """Further nodes may have it."""
        for node in sources:
            if node != self.me and len(self._sources) < SOURCES:
                self._sources.setdefault(node, _Source())

    def answered(self, now: Instant, node: NodeId, held: BlobHeld) -> None:
        """A source says what it has."""
        source = self._sources.get(node)
        if source is None or source.wrong:
            return
        self.add(held.peers[: limits.BLOB_PEERS])
        source.waits_since = now if source.asked else None
        source.says_none = held.total < 0
        if held.total < 0:
            source.has, source.is_whole = 0, False
            self.why = f"{node} does not have it"
            return
        if not self._learn(now, node, held):
            return
        source.is_whole = held.chunks is None
        every = _ones(self.chunks)
        source.has = every if held.chunks is None else int.from_bytes(held.chunks, "little") & every

    def _learn(self, now: Instant, node: NodeId, held: BlobHeld) -> bool:
        """The size, and digests that follow those known; False for a source that contradicts the others."""
        if self.total is None:
            self.total = held.total
        if held.total != self.total:
            self._sources[node].wrong = self.why = f"{node} does not know how long it is"
            return False
        left = DIGEST_BYTES * self.chunks - len(self.digests)
        if held.digests and left:
            if len(held.digests) % DIGEST_BYTES or len(held.digests) > left:
                self._sources[node].wrong = self.why = f"{node} does not know how long it is"
                return False
            self.digests += held.digests
            self.catalogued.add(node)
        if held.digests or (held.chunks is None and not self.is_catalogued):
            self._news_at = now
        return True

    def found(self, index: int) -> None:
        """A chunk is here since an earlier time."""
        self._here |= 1 << index

    def came(self, now: Instant, node: NodeId, index: int) -> None:
        """A chunk is here, and right."""
        self._off(now, node, index)
        self._here |= 1 << index
        self._news_at = now

    def lacked(self, now: Instant, node: NodeId, index: int) -> None:
        """A source does not have the chunk after all."""
        self._off(now, node, index)
        self._sources[node].has &= ~(1 << index)

    def damaged(self, now: Instant, node: NodeId, index: int) -> None:
        """A source sent bytes that the digest does not fit: nothing is taken from it any more."""
        self._off(now, node, index)
        self._give_up(self._sources[node], list(self._sources[node].asked))
        self._sources[node].wrong = self.why = f"{node} sends a chunk that does not have the hash that was said"

    def _off(self, now: Instant, node: NodeId, index: int) -> None:
        source = self._sources[node]
        source.asked.pop(index, None)
        source.waits_since = now if source.asked else None
        self._one_less(index)

    def _one_less(self, index: int) -> None:
        if index in self._asked:
            self._asked[index] -= 1
            if not self._asked[index]:
                del self._asked[index]

    def _give_up(self, source: _Source, indices: Iterable[int]) -> None:
        """These chunks, which were asked of it, are asked of others."""
        for index in indices:
            del source.asked[index]
            self._one_less(index)

    # What follows

    def failed(self, now: Instant) -> bool:
        """Can nobody give what is missing?"""
        if self.is_done:
            return False
        if self._news_at is not None and now >= after(self._news_at, STALLED_MS):
            return True
        silent = [node for node, source in self._sources.items() if _is_silent(now, source)]
        if silent:
            self.why = f"{silent[-1]} did not answer"
        return all(source.wrong or source.says_none or node in silent for node, source in self._sources.items())

    def questions(self, now: Instant) -> list[Question]:
        """What to ask now. What is asked counts as asked."""
        if self._news_at is None:
            self._news_at = now
        asked: list[Question] = []
        for node, source in self._sources.items():
            if source.wrong:
                continue
            self._give_up(source, [index for index, at in source.asked.items() if now >= after(at, SILENT_MS)])
            if source.polled_at is None or now >= after(source.polled_at, POLL_MS):
                asked.append(self._poll(now, node, source))
        if self.is_catalogued:
            asked += self._chunks(now)
        return asked

    def _poll(self, now: Instant, node: NodeId, source: _Source) -> Question:
        source.polled_at = now
        if source.waits_since is None:
            source.waits_since = now
        return Question(node, AskBlob(self.blob, len(self.digests) // DIGEST_BYTES))

    def _chunks(self, now: Instant) -> list[Question]:
        missing = _ones(self.chunks) & ~self._here
        open_ = missing & ~_bits(self._asked)
        elsewhere = 0
        for source in self._sources.values():
            if not source.is_whole:
                elsewhere |= source.has
        asked: list[Question] = []
        nodes = list(self._sources)
        self._chance.shuffle(nodes)
        for turn in range(limits.BLOB_CHUNKS_ASKED):
            for node in nodes:
                source = self._sources[node]
                if source.wrong or len(source.asked) > turn or _is_silent(now, source):
                    continue
                index = self._pick(source, open_, elsewhere)
                if index is None and not source.asked:
                    index = self._late(now, source)
                if index is not None:
                    open_ &= ~(1 << index)
                    asked.append(self._want(now, node, source, index))
        return asked

    def _want(self, now: Instant, node: NodeId, source: _Source, index: int) -> Question:
        if not source.asked:
            source.waits_since = now
        source.asked[index] = now
        self._asked[index] = self._asked.get(index, 0) + 1
        return Question(node, WantChunk(self.blob, index))

    def _pick(self, source: _Source, open_: int, elsewhere: int) -> int | None:
        mine = source.has & open_
        if not source.is_whole:
            return self._any_of(mine)
        rare = mine & ~elsewhere
        return self._any_of(rare or (0 if source.asked else mine))

    def _any_of(self, bits: int) -> int | None:
        """The first bit from a place on that chance gives."""
        if not bits:
            return None
        start = self._chance.randrange(bits.bit_length())
        return start + _lowest(bits >> start)

    def _late(self, now: Instant, source: _Source) -> int | None:
        """A chunk that somebody else owes for long."""
        for other in self._sources.values():
            for index, at in other.asked.items():
                if now >= after(at, LATE_MS) and source.has >> index & 1 and self._asked.get(index, 0) == 1:
                    return index
        return None

    def deadline(self) -> Instant | None:
        """When to look again if nothing happens."""
        asked = [source.polled_at for source in self._sources.values() if not source.wrong]
        polls = [after(at, POLL_MS) for at in asked if at is not None]
        return earliest(*polls, None if self._news_at is None else after(self._news_at, STALLED_MS))


def _is_silent(now: Instant, source: _Source) -> bool:
    return source.waits_since is not None and now >= after(source.waits_since, SILENT_MS)


def _ones(count: int) -> int:
    return (1 << count) - 1


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _bits(indices: Iterable[int]) -> int:
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits
