"""How the command speaks: tables for people, JSON for programs, one line for what went wrong."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import click

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
        from rich.console import Console  # the daemon and most commands do without it

        Console().print(draw(columns, shown))
        return
    widths = [max(len(row[i]) for row in [list(columns), *shown]) for i in range(len(columns))]
    for row in [list(columns), *shown]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def draw(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """The table as rich draws it."""
    from rich import box
    from rich.table import Table

    drawn = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def progress_of(job: dict[str, Any]) -> str:
    """``step 120 of 480``."""
    if job["step"] is None:
        return "-"
    return f"{job['step']} of {job['steps']}" if job["steps"] is not None else str(job["step"])


def number(value: float | None, digits: int) -> str:
    """A number for people."""
    return "-" if value is None else f"{value:,.{digits}f}"


def job_row(job: dict[str, Any]) -> list[str]:
    """A job in a table."""
    return [
        job["id"],
        job["state"],
        progress_of(job),
        number(job["samples_per_second"], 0),
        number(job["loss"], 4),
        job["reason"] or "",
    ]


JOB_COLUMNS = ("job", "state", "step", "samples/s", "loss", "reason")
MEMBER_COLUMNS = ("node", "state", "address", "voter", "pid", "roles")


def member_row(member: dict[str, Any]) -> list[str]:
    """A member in a table."""
    roles = ", ".join(role["role"] for role in member["roles"])
    voter = "yes" if member["voter"] else "no"
    return [member["name"], member["state"], member["address"], voter, str(member["pid"] or "-"), roles]


def survives(status: dict[str, Any]) -> str:
    """Which losses can be survived now."""
    voters = [member for member in status["members"] if member["voter"]]
    alive = sum(member["state"] == "alive" for member in voters)
    spare = alive - (len(voters) // 2 + 1)
    if spare < 0:
        return "nothing can be decided until voters come back"
    return f"{spare} of {len(voters)} voters can be lost now" if spare else "no voter can be lost now"
