"""Files by the hash of their bytes: whole and durable under their name, or not there at all."""

import hashlib
import os
import re
from pathlib import Path

from dmi_protocol.identity import BlobHash

_HASH = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = ".*"


class WrongHashError(Exception):
    """The bytes are not those that the name promises."""


class Blobs:
    """A directory of blobs. Methods may be called from any thread; ``OSError`` is the disk's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, blob: BlobHash) -> Path:
        """Where the blob lies, or would lie. Raises ``WrongHashError`` for a name that is no hash: it may be a stranger's
        word, and must not lead out of the directory."""
        if not is_hash(blob):
            raise WrongHashError(f"{blob[:80]!r} is no SHA-256")
        return self._directory / blob

    def sweep(self) -> None:
        """Remove what an earlier process began to gather and did not finish. Only before anything is under way."""
        for path in self._directory.glob(_UNFINISHED):
            path.unlink(missing_ok=True)

    def has(self, blob: BlobHash) -> bool:
        """Is it here? What is no hash never is."""
        return is_hash(blob) and self.path(blob).is_file()

    def is_whole(self, blob: BlobHash) -> bool:
        """Is it here, with the bytes that its name promises? Reads all of it."""
        return self.has(blob) and hash_of(self.path(blob)) == blob

    def incoming(self, blob: BlobHash) -> Path:
        """Where the pieces of a blob that is on its way are gathered."""
        return self.path(blob).with_name(f".{blob}.{os.getpid()}")

    def read(self, blob: BlobHash, offset: int, length: int) -> tuple[int, bytes]:
        """The total size, and up to ``length`` bytes from ``offset`` on; (-1, nothing) when it is not here."""
        try:
            with self.path(blob).open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                file.seek(offset)
                return total, file.read(length)
        except FileNotFoundError:
            return -1, b""

    def adopt(self, path: Path, blob: BlobHash) -> None:
        """Take the file at ``path`` in under its hash; raises ``WrongHashError`` when it has another one."""
        final = self.path(blob)
        with path.open("rb") as file:
            if hash_of(path) != blob:
                path.unlink()
                raise WrongHashError(f"{path.name} does not have the hash that its name promises")
            os.fsync(file.fileno())
        path.replace(final)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def drop(self, blob: BlobHash) -> None:
        """Free its space."""
        if self.has(blob):
            self.path(blob).unlink(missing_ok=True)


def is_hash(name: str) -> bool:
    """Is this the name of a blob: 64 hexadecimal digits, and so no path to anywhere else?"""
    return _HASH.fullmatch(name) is not None


def hash_of(path: Path) -> BlobHash:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return BlobHash(hashlib.file_digest(file, "sha256").hexdigest())
