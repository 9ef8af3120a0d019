"""Where inputs are: a path of this host, or an address such as ``s3://bucket/folder`` that fsspec understands. Addresses are read
on every node with the credentials that it has itself."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dmi.errors import DmiError, UsageError


class UnreachableError(DmiError):
    """A place does not answer; it may answer others, or later."""


def is_address(text: str) -> bool:
    """Is it an address, and no path?"""
    return "://" in text


def absolute(text: str) -> str:
    """An address as it is; a path from the root."""
    return text if is_address(text) else str(Path(text).resolve())


class Place:
    """A file or a folder. Every method raises ``OSError``, or ``UnreachableError`` for an address."""

    def __init__(self, text: str) -> None:
        """Raises ``UsageError`` for an address that nothing here understands."""
        self.text = text
        self._files: Any = None
        self._path = text
        if is_address(text):
            self._files, self._path = _file_system(text)

    def __str__(self) -> str:
        return self.text

    @property
    def local(self) -> Path | None:
        """The path, where it is one of this host."""
        return None if self._files is not None else Path(self._path)

    @property
    def suffix(self) -> str:
        """Of its name."""
        return Path(self._path).suffix

    def exists(self) -> bool:
        """Is it there?"""
        return bool(self._ask("exists")) if self._files is not None else Path(self._path).exists()

    def is_folder(self) -> bool:
        """Is it a folder?"""
        return bool(self._ask("isdir")) if self._files is not None else Path(self._path).is_dir()

    def size(self) -> int:
        """Of a file, in bytes."""
        return int(self._ask("size") or 0) if self._files is not None else Path(self._path).stat().st_size

    def open(self) -> IO[bytes]:
        """To read; it can be sought in."""
        if self._files is None:
            return Path(self._path).open("rb")
        opened: IO[bytes] = self._ask("open")
        return opened

    @contextmanager
    def unpacked(self) -> Iterator[IO[bytes]]:
        """The same; what a ``.gz`` file holds."""
        with self.open() as file:
            if self.suffix != ".gz":
                yield file
                return
            with gzip.GzipFile(fileobj=file) as plain:
                yield cast("IO[bytes]", plain)

    def beside(self, name: str) -> "Place":
        """``name`` as this file says it: from its folder on, or an absolute path, or an address."""
        if is_address(name) or (self._files is None and name.startswith("/")):
            return Place(name)
        return self._at(str(Path(self._path).parent / name))

    def within(self, name: str) -> "Place":
        """A file of this folder."""
        return self._at(str(Path(self._path) / name))

    def _at(self, path: str) -> "Place":
        made = Place.__new__(Place)
        made.text, made._path, made._files = path, path, self._files
        return made

    def names(self) -> Iterator[str]:
        """Every regular file below the folder, relative to it, in the order of the bytes; hidden files and folders are left out,
        links to files are followed and links to folders are not."""
        if self._files is None:
            root = os.fsencode(self._path)
            found = [os.fsdecode(os.path.relpath(each, root)) for each in _walk(root)]
        else:
            names = [os.path.relpath(each, self._path) for each in self._ask("find")]
            found = [name for name in names if not any(part.startswith(".") for part in Path(name).parts)]
        yield from sorted(found, key=os.fsencode)

    def _ask(self, verb: str) -> Any:
        try:
            return getattr(self._files, verb)(self._path)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each file system raises its own
            raise UnreachableError(f"{self.text} cannot be reached: {_first_line(error)}") from error


def _file_system(text: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as missing:
        raise UsageError(
            f"{text} is read with fsspec, which is not installed here: pip install 'dmi[infer]'"
        ) from missing
    try:
        files, path = url_to_fs(text)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{text} cannot be read: {_first_line(error)}") from error
    return files, str(path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _walk(folder: bytes) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif not entry.is_dir():
                yield entry.path
