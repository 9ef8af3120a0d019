"""A job's files as they travel: an uncompressed tar of regular files, unpacked into a directory of its own.

Unpacked files have the epoch as their time of change, so what a job wrote is told from what it was given.
"""

import errno
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from dmi_protocol import limits

_UNPACKED_AT = 0
_MODE = 0o644
_PIECE = 1 << 20
_BAD_NAMES = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
"""What is wrong with a bundle, and not with the disk, when two of its names cannot both be there, or one nowhere."""


class BadBundleError(Exception):
    """The bundle holds something that no client puts there."""


def unpack(bundle: Path, directory: Path) -> None:
    """Unpack into ``directory``, which must be empty or missing. Raises ``BadBundleError``; ``OSError`` is the disk's."""
    directory.mkdir(parents=True, exist_ok=True)
    total = 0
    try:
        with tarfile.open(bundle, "r:") as archive:
            for number, member in enumerate(archive):
                total += member.size
                if not member.isfile() or number >= limits.BUNDLE_FILES or total > limits.BUNDLE_BYTES:
                    raise BadBundleError(f"{member.name} is no plain file, or too much")
                _unpack_file(archive, member, directory)
    except (tarfile.TarError, ValueError, ArithmeticError, EOFError) as error:  # a name with a NUL, a time that is none
        raise BadBundleError(f"not a bundle: {error}") from error
    except OSError as error:
        if error.errno in _BAD_NAMES:
            raise BadBundleError(f"not a bundle: {error}") from error
        raise


def _unpack_file(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    """Of a member only its name and its bytes count: there are no links to follow, and nothing is ever written over. (What
    ``extract`` can be told of that depends on the patch release of Python.)"""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise BadBundleError(f"{member.name!r} would lie outside")
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None, "a plain file has bytes"
    with source, path.open("xb") as target:
        shutil.copyfileobj(source, target, _PIECE)
    if path.stat().st_size != member.size:
        raise BadBundleError(f"{member.name!r} is cut")
    path.chmod(_MODE)
    os.utime(path, (_UNPACKED_AT, _UNPACKED_AT))


def keep_written(directory: Path) -> None:
    """Remove what was unpacked into ``directory`` and nobody changed, with Python's caches; the rest is the job's result."""
    for cache in list(directory.rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)
    for path in sorted(directory.rglob("*"), reverse=True):  # what is inside comes before its directory
        if path.is_dir() and not path.is_symlink():
            _remove_empty(path)
        elif path.lstat().st_mtime == _UNPACKED_AT:
            path.unlink(missing_ok=True)
    _remove_empty(directory)


def _remove_empty(directory: Path) -> None:
    if not any(directory.iterdir()):
        directory.rmdir()
