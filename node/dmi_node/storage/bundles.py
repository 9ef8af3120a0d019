"""A job's files as they travel: an uncompressed tar of regular files, unpacked into a directory of its own.

Unpacked files have the epoch as their time of change, so what a job wrote is told from what it was given.
"""

import shutil
import tarfile
from pathlib import Path

from dmi_protocol import limits

_UNPACKED_AT = 0


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
                archive.extract(member.replace(mtime=_UNPACKED_AT), directory, filter="data")
    except (tarfile.TarError, ValueError, ArithmeticError, EOFError) as error:  # a name with a NUL, a time that is none
        raise BadBundleError(f"not a bundle: {error}") from error


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
