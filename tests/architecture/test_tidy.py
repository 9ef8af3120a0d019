"""Sizes are reported, and the largest are refused. A file or function that grows is a room with two purposes."""

import ast
from collections.abc import Iterator
from statistics import median

import pytest

from tests.architecture.sources import ROOT, every_source

FILE_LINES = 600
FUNCTION_LINES = 60
BANNED_NAMES = {"utils", "common", "shared", "helpers", "misc", "manager", "handler", "base"}


def functions() -> Iterator[tuple[str, int]]:
    for source in every_source():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                yield f"{source.path}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_files_and_functions_stay_small(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(((source.lines, source.path) for source in every_source()), reverse=True)
    lengths = sorted(((length, name) for name, length in functions()), reverse=True)
    with capsys.disabled():
        print(f"\n{len(files)} files, median {median(n for n, _ in files):.0f} lines, longest {files[0]}")
        print(f"{len(lengths)} functions, median {median(n for n, _ in lengths):.0f} lines, longest {lengths[0]}")
    assert [f for f in files if f[0] > FILE_LINES] == []
    assert [f for f in lengths if f[0] > FUNCTION_LINES] == []


def test_names_say_what_a_file_is_about() -> None:
    assert [s.path for s in every_source() if BANNED_NAMES & set(s.module.split("."))] == []


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    assert [s.path for s in every_source() if any(mark in (ROOT / s.path).read_text() for mark in marks)] == []


def test_every_public_module_says_what_it_is() -> None:
    assert [s.path for s in every_source() if ast.get_docstring(s.tree) is None] == []
