"""Files by their hash, and logs, from node to node in pieces; the asker drives, so nothing is sent unasked."""

from msgspec import Struct

from dmi_protocol.identity import BlobHash, JobId


class WantBlob(Struct, frozen=True, tag="want-blob"):
    """Send me the piece of ``blob`` that starts at ``offset``."""

    blob: BlobHash
    offset: int


class BlobPiece(Struct, frozen=True, tag="blob-piece"):
    """A piece of a blob of ``total`` bytes; ``total`` is -1 when the sender does not have it."""

    blob: BlobHash
    offset: int
    total: int
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


BlobMessage = WantBlob | BlobPiece | KeepBlob | BlobKept | WantLog | LogPiece
"""Answered by the daemon's stores; they never reach a machine."""
