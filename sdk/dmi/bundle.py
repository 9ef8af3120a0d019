"""A job's files as one blob: the script, what it imports beside it, and data that the user names.

The format is an uncompressed tar of regular files with relative names, in order of name, all with the same time, owner
and mode: equal files give equal bytes, and so an equal hash.
"""

import ast
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from dmi.errors import UsageError
from dmi_protocol import limits


class Bundle(Struct, frozen=True):
    """``script`` is the script's name inside; ``hash`` the SHA-256 of ``data``."""

    script: str
    hash: str
    data: bytes


def make(script: str | Path, include: Iterable[str | Path] = ()) -> Bundle:
    """Bundle ``script``. Names inside are relative to its folder; ``include`` may be files or folders below that folder.

    Raises ``UsageError`` for a script that is not there, does not parse, or is too much.
    """
    script = Path(script)
    if not script.is_file():
        raise UsageError(f"there is no script {str(script)!r}: is the path right?")
    root = script.resolve().parent
    files = {path.relative_to(root).as_posix(): path for path in _imported(script.resolve(), root)}
    for name in include:
        for path in _included(root, Path(name)):
            files[path.relative_to(root).as_posix()] = path
    if len(files) > limits.BUNDLE_FILES:
        raise UsageError(f"the job has {len(files)} files, more than {limits.BUNDLE_FILES}; include fewer")
    data = _pack(files)
    return Bundle(script.name, hashlib.sha256(data).hexdigest(), data)


def _pack(files: dict[str, Path]) -> bytes:
    total = sum(path.stat().st_size for path in files.values())
    if total > limits.BUNDLE_BYTES:
        largest = max(files, key=lambda name: files[name].stat().st_size)
        raise UsageError(
            f"the job's files are {total / 1e6:.0f} MB, more than {limits.BUNDLE_BYTES / 1e6:.0f} MB (the largest is {largest}); "
            "read large data from a path that every host has"
        )
    return _tar((name, files[name].read_bytes()) for name in sorted(files))


def pack(files: Mapping[str, bytes]) -> bytes:
    """Files that are in memory, by name, as one blob. Raises ``UsageError`` when they are too much."""
    total = sum(map(len, files.values()))
    if total > limits.BUNDLE_BYTES:
        raise UsageError(f"the job's files are {total / 1e6:.0f} MB, more than {limits.BUNDLE_BYTES / 1e6:.0f} MB")
    return _tar(sorted(files.items()))


def _tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, body in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), 0o644
            archive.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


def _included(root: Path, name: Path) -> list[Path]:
    path = (name if name.is_absolute() or name.exists() else root / name).resolve()
    if not path.exists():
        raise UsageError(f"--include {name}: there is no such file or folder")
    if not path.is_relative_to(root):
        raise UsageError(f"--include {name} lies outside {root}: files travel relative to the script's folder")
    return (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    )


def _imported(script: Path, root: Path) -> set[Path]:
    """The script and the modules in its folder that it imports, and what those import, found without running anything."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for module, level in _imports(path):
            base = _base_of(path, level, root)
            if base is not None:
                waiting += [near for near in _files_of(base, module) if near not in found]
    return found


def _base_of(path: Path, level: int, root: Path) -> Path | None:
    """Where an import of ``level`` dots starts; None above the script's folder, where a job could not import either."""
    if not level:
        return root
    folders = [folder for folder in path.parents if folder.is_relative_to(root)]
    return folders[level - 1] if level <= len(folders) else None


def _imports(path: Path) -> list[tuple[list[str], int]]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except SyntaxError as error:
        raise UsageError(f"{path.name}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
    except ValueError as error:
        raise UsageError(f"{path.name} is no Python script: {error}") from error
    found: list[tuple[list[str], int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(name.name.split("."), 0) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            found.append((module, node.level))
            found += [([*module, name.name], node.level) for name in node.names]
    return found


def _files_of(base: Path, module: list[str]) -> list[Path]:
    """The files that importing ``module`` from ``base`` would run, as far as they lie there."""
    files = []
    for depth in range(1, len(module) + 1):
        place = base.joinpath(*module[:depth])
        files += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return files
