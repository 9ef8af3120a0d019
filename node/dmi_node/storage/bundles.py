"""A job's files as they travel: an uncompressed tar of regular files, unpacked into a directory of its own."""

import tarfile
from pathlib import Path

from dmi_protocol import limits


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
                archive.extract(member, directory, filter="data")
    except (tarfile.TarError, ValueError, ArithmeticError, EOFError) as error:  # a name with a NUL, a time that is none
        raise BadBundleError(f"not a bundle: {error}") from error
