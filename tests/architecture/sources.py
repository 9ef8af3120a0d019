"""The sources as syntax trees: every file of the five packages, parsed once."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "dmi_protocol": ROOT / "protocol" / "dmi_protocol",
    "dmi_wire": ROOT / "protocol" / "dmi_wire",
    "dmi_tensor": ROOT / "protocol" / "dmi_tensor",
    "dmi_node": ROOT / "node" / "dmi_node",
    "dmi": ROOT / "sdk" / "dmi",
}


class Source(NamedTuple):
    """One parsed file. ``module`` is its dotted name, ``path`` is relative to the repository."""

    module: str
    path: str
    lines: int
    tree: ast.Module


class Import(NamedTuple):
    """One imported module, and where. ``nested`` is true inside a function."""

    source: Source
    module: str
    line: int
    nested: bool

    def __str__(self) -> str:
        return f"{self.source.path}:{self.line} imports {self.module}"


@cache
def sources(package: str) -> tuple[Source, ...]:
    """Every file of ``package``, in order of path."""
    top = PACKAGES[package]
    found = []
    for path in sorted(top.rglob("*.py")):
        text = path.read_text()
        parts = (package, *path.relative_to(top).with_suffix("").parts)
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Source(module, str(path.relative_to(ROOT)), text.count("\n"), ast.parse(text)))
    return tuple(found)


def every_source() -> Iterator[Source]:
    """Every file of every package."""
    for package in PACKAGES:
        yield from sources(package)


def imports(source: Source) -> Iterator[Import]:
    """What ``source`` imports, at the top and inside functions."""
    nested = {
        id(node)
        for function in ast.walk(source.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(source, name.name, node.lineno, id(node) in nested)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield Import(source, node.module, node.lineno, id(node) in nested)
