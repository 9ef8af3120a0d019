"""How the command speaks: tables for people, JSON for programs, one line for what went wrong."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import click

from dmi_node.cli import live, wording

FINE, UNHEALTHY, USAGE, NO_NODE = 0, 1, 2, 3


def end(line: str, code: int) -> NoReturn:
    """One line on standard error, and the exit code."""
    click.echo(line, err=True)
    sys.exit(code)


def as_json(value: Any) -> None:
    """One JSON value on one line."""
    click.echo(json.dumps(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table: drawn on a terminal, plain columns elsewhere."""
    shown = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        live.draw([live.table(columns, shown)])
        return
    widths = [max(len(row[i]) for row in [list(columns), *shown]) for i in range(len(columns))]
    for row in [list(columns), *shown]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def jobs(found: list[dict[str, Any]]) -> None:
    """The jobs: on a terminal their reasons stand below, elsewhere each job is one line."""
    if not sys.stdout.isatty():
        table(wording.JOB_COLUMNS, map(wording.job_row, found))
        return
    live.draw(live.of_jobs(found))
