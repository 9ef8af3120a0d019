"""A job's files as one blob: the script, what it imports beside it, and data that the user names.

The format is an uncompressed tar of regular files with relative names, in order of name, all with the same time, owner
and mode: equal files give equal bytes, and so an equal hash.
"""

import ast
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from dmi.errors import UsageError
from dmi_protocol import limits

_AT_HOME = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "venv",
        "env",
        "node_modules",
        "__pycache__",
        ".tox",
        ".nox",
        ".eggs",
        ".idea",
        ".vscode",
    }
    | {".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints", ".hypothesis", ".cache"}
)
"""Folders of these names stay at home, as does any virtual environment."""
_LARGEST = 3
"""So many folders are named where there is too much."""


class Bundle(Struct, frozen=True):
    """``script`` is the script's name inside; ``hash`` the SHA-256 of ``data``. ``left`` are the folders that stayed at home."""

    script: str
    hash: str
    data: bytes
    left: tuple[str, ...] = ()


def make(script: str | Path, include: Iterable[str | Path] = (), root: str | Path | None = None) -> Bundle:
    """Bundle ``script``, which may be a link: names inside are relative to the folder of the file that it leads to, or to
    ``root``, all of which travels then. ``include`` may be files or folders below that folder. Of folders, repositories, virtual
    environments and caches stay at home.

    Raises ``UsageError`` for a script that is not there, is a notebook, does not parse, or is too much.
    """
    script = Path(script)
    if not script.is_file():
        raise UsageError(f"there is no script {str(script)!r}: is the path right?")
    if script.suffix == ".ipynb":
        raise UsageError(
            f"{script.name} is a notebook: write it as a script first, `jupyter nbconvert --to script {script.name}`"
        )
    own = script.resolve()
    folder = own.parent if root is None else _root(Path(root), own)
    left: set[str] = set()
    chosen = list(_below(folder, folder, left)) if root is not None else []
    found = {*_imported(own, own.parent), *(path for path in chosen)}
    for name in include:
        found |= set(_included(folder, Path(name), left))
    files = {path.relative_to(folder).as_posix(): path for path in found}
    if len(files) > limits.BUNDLE_FILES:
        raise UsageError(
            f"the job has {len(files)} files, more than {limits.BUNDLE_FILES} (most are in {_most(files, lambda path: 1)}); "
            "include fewer"
        )
    data = _pack(files)
    name = own.relative_to(folder).as_posix()
    return Bundle(name, hashlib.sha256(data).hexdigest(), data, tuple(sorted(left)))


def _root(root: Path, script: Path) -> Path:
    if not root.is_dir():
        raise UsageError(f"--root {root}: there is no such folder")
    if not script.is_relative_to(root.resolve()):
        raise UsageError(f"--root {root}: the script {script} does not lie in it")
    return root.resolve()


def _most(files: Mapping[str, Path], weight: Callable[[Path], int]) -> str:
    """The folders in which there is most, heaviest first."""
    weights: dict[str, int] = {}
    for name, path in files.items():
        folder = "/".join(name.split("/")[:-1][:2]) or "."
        weights[folder] = weights.get(folder, 0) + weight(path)
    return ", ".join(sorted(weights, key=lambda folder: -weights[folder])[:_LARGEST])


def _pack(files: Mapping[str, Path]) -> bytes:
    try:
        total = sum(path.stat().st_size for path in files.values())
        if total > limits.BUNDLE_BYTES:
            most = _most(files, lambda path: path.stat().st_size)
            raise UsageError(
                f"the job's files are {total / 1e6:.0f} MB, more than {limits.BUNDLE_BYTES / 1e6:.0f} MB (most are in {most}); "
                "read large data from a path that every host has"
            )
        return _tar((name, files[name].read_bytes()) for name in sorted(files))
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error


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


def _included(root: Path, name: Path, left: set[str]) -> list[Path]:
    path = (name if name.is_absolute() or name.exists() else root / name).resolve()
    if not path.exists():
        raise UsageError(f"--include {name}: there is no such file or folder")
    if not path.is_relative_to(root):
        raise UsageError(
            f"--include {name} lies outside {root}: files travel relative to the script's folder, or to --root"
        )
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"--include {name} is no file and no folder")
    return list(_below(path, root, left))


def _below(folder: Path, root: Path, left: set[str]) -> Iterator[Path]:
    """The files in a folder; what stays at home is added to ``left``. Links to folders are not followed: they may go round."""
    for here, folders, names in os.walk(folder, onerror=_cannot):
        at = Path(here)
        home = {name for name in folders if name in _AT_HOME or (at / name / "pyvenv.cfg").exists()}
        left |= {(at / name).relative_to(root).as_posix() for name in home if name != "__pycache__"}
        folders[:] = sorted(set(folders) - home)
        yield from (path for name in names if (path := at / name).is_file())


def _cannot(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error


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
