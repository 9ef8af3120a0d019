"""Files by the hash of their bytes: whole and durable under their name, or not there at all."""

import contextlib
import hashlib
import os
import re
import threading
import time
from pathlib import Path

from msgspec import Struct

from dmi_protocol import limits
from dmi_protocol.identity import BlobHash

_HASH = re.compile(r"[0-9a-f]{64}")
_UPLOADS, _INCOMING = ".upload-*", ".*.incoming"
_CATALOGUES_BYTES = 4 << 20
"""Digests that are in memory: those of 32 GB."""
_ENTRY_BYTES = 256
ABANDONED_S = 24 * 60 * 60
"""A blob that was on its way here, and of which nothing has come for so long, is not waited for any more."""


class Catalogue(Struct, frozen=True):
    """Of a blob that is whole: its size in bytes, and the SHA-256 of each chunk, one after the other."""

    size: int
    digests: bytes


class WrongHashError(Exception):
    """The bytes are not those that the name promises."""


class NoRoomError(Exception):
    """The quota does not allow more."""


class Blobs:
    """A directory of blobs. Methods may be called from any thread; ``OSError`` is the disk's."""

    def __init__(self, directory: Path, quota: int | None = None) -> None:
        """``quota`` is how many bytes may be taken in before no more is: see ``check_room``."""
        self._directory = directory
        self.quota = quota
        self._catalogues: dict[BlobHash, tuple[tuple[int, int, int], Catalogue | None]] = {}
        """What was read, and of which file: a catalogue is good for as long as its file stays as it was."""
        self._remembering = threading.Lock()

    def path(self, blob: BlobHash) -> Path:
        """Where the blob lies, or would lie. Raises ``WrongHashError`` for a name that is no hash: it may be a stranger's
        word, and must not lead out of the directory."""
        if not is_hash(blob):
            raise WrongHashError(f"{blob[:80]!r} is no SHA-256")
        return self._directory / blob

    def sweep(self) -> None:
        """Remove what an earlier process began to gather and did not finish; what came from other nodes waits for the rest for
        a day. Only before anything is under way."""
        for path in self._directory.glob(_UPLOADS):
            path.unlink(missing_ok=True)
        for path in self._directory.glob(_INCOMING):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink(missing_ok=True)

    def sizes(self) -> dict[BlobHash, int]:
        """Every blob that is here, and its bytes."""
        return {BlobHash(path.name): path.stat().st_size for path in self._directory.iterdir() if is_hash(path.name)}

    def arriving(self) -> int:
        """Bytes on the disk of what is not here whole."""
        paths = [*self._directory.glob(_INCOMING), *self._directory.glob(_UPLOADS)]
        return sum(path.stat().st_blocks * 512 for path in paths)

    def check_room(self, more: int) -> None:
        """Raises ``NoRoomError`` when ``more`` bytes would be more than the quota."""
        if self.quota is None:
            return
        used = sum(self.sizes().values())
        if used + more > self.quota:
            raise NoRoomError(f"its quota is {self.quota:,} bytes, of which {used:,} are used")

    def has(self, blob: BlobHash) -> bool:
        """Is it here? What is no hash never is."""
        return is_hash(blob) and self.path(blob).is_file()

    def is_whole(self, blob: BlobHash) -> bool:
        """Is it here, with the bytes that its name promises? Reads all of it."""
        return self.has(blob) and hash_of(self.path(blob)) == blob

    def incoming(self, blob: BlobHash) -> Path:
        """Where the pieces of a blob that is on its way are gathered."""
        return self.path(blob).with_name(f".{blob}.incoming")

    def size(self, blob: BlobHash) -> int | None:
        """In bytes; None when it is not here."""
        try:
            return self.path(blob).stat().st_size
        except FileNotFoundError:
            return None

    def catalogue(self, blob: BlobHash) -> Catalogue | None:
        """The digests of its chunks; None when it is not here with the bytes that its name promises. Reads all of it, once."""
        try:
            seen = _seen(self.path(blob))
        except FileNotFoundError:
            return None
        known = self._catalogues.get(blob)
        if known is None or known[0] != seen:
            known = seen, self._read_all(self.path(blob), blob)
            self._remember(blob, *known)
        return known[1]

    def _read_all(self, path: Path, blob: BlobHash) -> Catalogue | None:
        whole, digests, size = hashlib.sha256(), [], 0
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(limits.BLOB_CHUNK_BYTES), b""):
                whole.update(chunk)
                digests.append(hashlib.sha256(chunk).digest())
                size += len(chunk)
        return Catalogue(size, b"".join(digests)) if whole.hexdigest() == blob else None

    def _remember(self, blob: BlobHash, seen: tuple[int, int, int], catalogue: Catalogue | None) -> None:
        with self._remembering:
            self._catalogues.pop(blob, None)
            self._catalogues[blob] = seen, catalogue
            while len(self._catalogues) > 1 and self._remembered() > _CATALOGUES_BYTES:
                del self._catalogues[next(iter(self._catalogues))]

    def _remembered(self) -> int:
        return sum(_ENTRY_BYTES + len(found.digests if found else b"") for _, found in self._catalogues.values())

    def of_size(self, size: int, without: BlobHash) -> list[BlobHash]:
        """Other blobs that have so many bytes, the newest first: of one of them it may be another version."""
        found = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if is_hash(path.name) and path.name != without and (seen := path.stat()).st_size == size:
                    found.append((seen.st_mtime_ns, BlobHash(path.name)))
        return [blob for _, blob in sorted(found, reverse=True)]

    def chunk(self, blob: BlobHash, index: int) -> bytes:
        """Chunk ``index``; nothing when it is not here. Raises ``OSError``."""
        try:
            with self.path(blob).open("rb") as file:
                file.seek(index * limits.BLOB_CHUNK_BYTES)
                return file.read(limits.BLOB_CHUNK_BYTES)
        except FileNotFoundError:
            return b""

    def read(self, blob: BlobHash, offset: int, length: int) -> tuple[int, bytes]:
        """The total size, and up to ``length`` bytes from ``offset`` on; (-1, nothing) when it is not here."""
        try:
            with self.path(blob).open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                file.seek(offset)
                return total, file.read(length)
        except FileNotFoundError:
            return -1, b""

    def adopt(self, path: Path, blob: BlobHash, digests: bytes | None = None) -> None:
        """Take the file at ``path`` in under its hash; raises ``WrongHashError`` when it has another one. The ``digests`` of its
        chunks need not be made again."""
        final = self.path(blob)
        with path.open("rb") as file:
            if digests is None:
                catalogue = self._read_all(path, blob)
            else:
                is_whole = hash_of(path) == blob
                catalogue = Catalogue(os.fstat(file.fileno()).st_size, digests) if is_whole else None
            if catalogue is None:
                path.unlink()
                raise WrongHashError(f"{path.name} does not have the hash that its name promises")
            os.fsync(file.fileno())
        path.replace(final)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._remember(blob, _seen(final), catalogue)

    def drop(self, blob: BlobHash) -> None:
        """Free its space, and that of what has come of it."""
        if is_hash(blob):
            self.path(blob).unlink(missing_ok=True)
            self.incoming(blob).unlink(missing_ok=True)


def is_hash(name: str) -> bool:
    """Is this the name of a blob: 64 hexadecimal digits, and so no path to anywhere else?"""
    return _HASH.fullmatch(name) is not None


def hash_of(path: Path) -> BlobHash:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return BlobHash(hashlib.file_digest(file, "sha256").hexdigest())


def _seen(path: Path) -> tuple[int, int, int]:
    """Which file this is, its size in bytes, and when it was changed."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
