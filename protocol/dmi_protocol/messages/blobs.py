"""Files by their hash in chunks, and logs, from node to node; the asker drives, so nothing is sent unasked."""

from msgspec import Struct

from dmi_protocol.identity import BlobHash, JobId, NodeId


class AskBlob(Struct, frozen=True, tag="ask-blob"):
    """What have you got of ``blob``? I know the digests of its first ``known`` chunks."""

    blob: BlobHash
    known: int


class BlobHeld(Struct, frozen=True, tag="blob-held"):
    """The answer. ``total`` is the size in bytes; -1 when there is nothing of it here, or nothing that is whole.

    ``chunks`` has a bit for each chunk that is here, the first chunk's in the lowest bit of the first byte; None for all of them.
    ``digests`` are SHA-256 of the chunks from the asked one on, as many as fit; none while the sender is still reading. ``peers``
    are others who are fetching it now.
    """

    blob: BlobHash
    total: int
    chunks: bytes | None = None
    digests: bytes = b""
    peers: tuple[NodeId, ...] = ()


class WantChunk(Struct, frozen=True, tag="want-chunk"):
    """Send me chunk ``index`` of ``blob``: ``BLOB_CHUNK_BYTES`` from that many times ``index`` on."""

    blob: BlobHash
    index: int


class BlobChunk(Struct, frozen=True, tag="blob-chunk"):
    """A chunk; no bytes when the sender does not have it."""

    blob: BlobHash
    index: int
    data: bytes


class KeepBlob(Struct, frozen=True, tag="keep-blob"):
    """Please fetch this blob from me, so that two of us have it."""

    blob: BlobHash


class BlobKept(Struct, frozen=True, tag="blob-kept"):
    """The answer to ``KeepBlob``, once it is durable; ``kept`` is false when it could not be had."""

    blob: BlobHash
    kept: bool


class WantLog(Struct, frozen=True, tag="want-log"):
    """Send me what the role processes of ``job`` on your host have written from these offsets on."""

    request: int
    job: JobId
    offsets: dict[str, int]


class LogPiece(Struct, frozen=True, tag="log-piece"):
    """By worker: where the text starts, and the text."""

    request: int
    texts: dict[str, tuple[int, bytes]]


class AskDisk(Struct, frozen=True, tag="ask-disk"):
    """How full is your disk, and of what?"""

    request: int


class DiskUse(Struct, frozen=True, tag="disk-use"):
    """The answer, in bytes: the disk's size and what is free of it, what blobs may take (None: all of it), what lies there by
    what it belongs to (the largest, and the sum of all), what is on its way here, and what nothing speaks of. ``memory`` is what
    processes could still have of the host's, None where that is not known."""

    request: int
    total: int
    free: int
    quota: int | None
    models: dict[str, int]
    jobs: dict[str, int]
    models_bytes: int
    jobs_bytes: int
    arriving: int
    unclaimed: int
    memory: int | None = None


BlobMessage = AskBlob | BlobHeld | WantChunk | BlobChunk | KeepBlob | BlobKept | WantLog | LogPiece | AskDisk | DiskUse
"""Answered by the daemon's stores; they never reach a machine."""
