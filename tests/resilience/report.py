"""What the runs of the scenarios gave, as a table in Markdown."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from tests.resilience.watch import Recovery


class Outcome(NamedTuple):
    """One run. ``trouble`` is None when the job succeeded, and ``equal`` then says whether with the plain run's hash."""

    scenario: str
    title: str
    script: str
    equal: bool
    recoveries: Sequence[Recovery]
    trouble: str | None
    notes: Sequence[str]


class Skipped(NamedTuple):
    """A scenario that cannot be played here, and why."""

    scenario: str
    title: str
    reason: str


HEAD = (
    "| scenario | script | runs | equal hashes | detected, median s | next step, median s | slowest s | remarks |",
    "|---|---|--:|--:|--:|--:|--:|---|",
)


def table(outcomes: Iterable[Outcome], skipped: Iterable[Skipped]) -> str:
    """One row for each scenario and script, in the order in which they were played."""
    rows: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome.scenario, outcome.script), []).append(outcome)
    lines = [_row(found) for found in rows.values()]
    lines += [f"| ({each.scenario}) {each.title} | | 0 | | | | | not run: {each.reason} |" for each in skipped]
    return "\n".join([*HEAD, *lines]) + "\n"


def _row(runs: Sequence[Outcome]) -> str:
    recoveries = [each for run in runs for each in run.recoveries]
    detected = [each.detected_s for each in recoveries if each.detected_s is not None]
    recovered = [each.recovered_s for each in recoveries if each.recovered_s is not None]
    remarks = [run.trouble for run in runs if run.trouble is not None]
    remarks += [note for run in runs for note in run.notes]
    first = runs[0]
    cells = [
        f"({first.scenario}) {first.title}",
        first.script,
        str(len(runs)),
        f"{sum(run.equal for run in runs)}/{len(runs)}",
        _seconds(detected),
        _seconds(recovered),
        f"{max(recovered):.2f}" if recovered else "-",
        "; ".join(dict.fromkeys(remarks)).replace("|", "/"),
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(found: Sequence[float]) -> str:
    return f"{median(found):.2f}" if found else "-"
