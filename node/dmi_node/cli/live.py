"""What a terminal shows while something goes on. A picture is a function of what the mesh has said, and of nothing else."""

from collections.abc import Iterable
from typing import Any, TextIO

from dmi.job import ENDED
from dmi_node.cli import wording

_BAR = 60
_ENDED_SHOWN = 5
_STYLES = {
    "alive": "green",
    "suspect": "yellow",
    "dead": "red",
    "running": "green",
    "succeeded": "green",
    "recovering": "yellow",
    "failed": "red",
}


Picture = Any
"""What rich can draw. It is imported where something is drawn: the daemon and most commands do without it."""


def terminal(stream: TextIO) -> Any:
    """The terminal behind ``stream``; None where there is none on which lines can be drawn anew."""
    from rich.console import Console

    if not stream.isatty():
        return None
    console = Console(file=stream, highlight=False)
    return None if console.is_dumb_terminal else console


def draw(parts: Iterable[Picture]) -> None:
    """Pictures on standard output, once."""
    from rich.console import Console

    Console(highlight=False).print(*parts, sep="\n")


def show(pictures: Iterable[Picture], console: Any) -> None:
    """Each in the place of the one before; the last one stays. Drawn only when there is a new one, so nothing flickers."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        for picture in pictures:
            live.update(picture, refresh=True)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Picture:
    """Columns without lines. Cells are text, whatever they hold; a long one goes on below."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(wording.one_line(cell), _STYLES.get(cell, "")) for cell in row))
    return drawn


def line(text: str, style: str = "") -> Picture:
    """One line, or more where the terminal is narrow."""
    from rich.text import Text

    return Text(wording.one_line(text), style)


def of_job(job: dict[str, Any], seen: dict[str, Any], why: str) -> Picture:
    """A job that somebody waits for, in a mesh of which ``seen`` is the status: how far it is, and who does what."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    parts: list[Picture] = [line(f"{job['id']} {wording.line_of(job)}")]
    if job["steps"]:
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=job["steps"], completed=job["step"] or 0, width=_BAR))
        parts.append(bar)
    if job["state"] in ENDED:
        return Group(*parts)
    if not seen["quorum"]:
        parts.append(line(seen["quorum_reason"] or "no quorum", "yellow"))
    if why:
        parts.append(line(why))
    rows = [row for member in seen["members"] if (row := _part(member, job, seen))]
    if any(row[-2:] != ["-", "-"] for row in rows):  # the job has its places
        parts += [line(""), table(("node", "state", "leads", "works", "serves"), rows)]
    return Group(*parts)


def _part(member: dict[str, Any], job: dict[str, Any], seen: dict[str, Any]) -> list[str] | None:
    """What a member does for the job; None when that is nothing."""
    roles = sorted(role["role"] for role in member["roles"] if role["job"] == job["id"])
    leads = ["mesh"] * (member["name"] == seen["coordinator"]) + ["job"] * ("worker-0" in roles)
    if not roles and not leads:
        return None
    by_kind = [", ".join(role for role in roles if role.startswith(kind)) or "-" for kind in ("worker", "server")]
    return [member["name"], member["state"], ", ".join(leads) or "-", *by_kind]


def of_mesh(seen: dict[str, Any]) -> Picture:
    """The whole mesh: jobs above the members, because what does not fit on the screen is cut off below."""
    from rich.console import Group

    parts: list[Picture] = [line(wording.headline(seen), "" if seen["quorum"] else "yellow")]
    jobs = shown_jobs(seen["jobs"])
    if jobs:
        parts += [line(""), *of_jobs(jobs)]
    if hidden := len(seen["jobs"]) - len(jobs):
        parts.append(line(f"and {hidden} that ended before: `dmi-node jobs`", "dim"))
    if seen["deployments"]:
        parts += [line(""), table(wording.DEPLOYMENT_COLUMNS, map(wording.deployment_row, seen["deployments"]))]
    parts += [line(""), table(wording.MEMBER_COLUMNS, map(wording.member_row, seen["members"]))]
    for trouble in wording.troubles(seen):
        parts += [line(""), line(trouble, "yellow")]
    if seen["refused"]:
        parts += [line(""), line(wording.refused(seen))]
    return Group(*parts)


def shown_jobs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that go on, and the last few that have ended, in their order."""
    ended = [job["id"] for job in jobs if job["state"] in ENDED]
    old = set(ended[:-_ENDED_SHOWN])
    return [job for job in jobs if job["id"] not in old]


def of_jobs(jobs: list[dict[str, Any]]) -> list[Picture]:
    """A line for each job; why one is not well is a line of its own, which no column makes narrow."""
    *columns, _ = wording.JOB_COLUMNS
    rows = [wording.job_row(job)[:-1] for job in jobs]
    reasons = [f"{job['id']}: {job['reason']}" for job in jobs if job["reason"] and job["state"] != "succeeded"]
    return [table(columns, rows), *map(line, reasons)]
