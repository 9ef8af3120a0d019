"""``python -m tests.resilience --repeats 10``: every scenario so often, and a table of what came out."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.resilience.play import play, why_not
from tests.resilience.report import Outcome, Skipped, table
from tests.resilience.scenarios import SCENARIOS
from tests.resilience.training import SCRIPTS, Plan

_EACH = ("digits", "transformer")


def main() -> int:
    """Print the table, and write it where it is wanted; 1 when something was not as promised."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    skipped: list[Skipped] = []
    with tempfile.TemporaryDirectory(prefix="dmi-resilience-") as home:
        plan = Plan(Path(home), options.epochs, options.backups)
        for key, script in _wanted(options):
            scenario = SCENARIOS[key]
            reason = why_not(scenario)
            if reason is not None:
                skipped.append(Skipped(key, scenario.title, reason))
                continue
            for number in range(options.repeats):
                outcomes.append(play(key, scenario, script, plan, options.seed + number))
                print(line(outcomes[-1]), flush=True)
    found = table(outcomes, dict.fromkeys(skipped))
    print(f"\n{found}\n{len(outcomes)} runs in {time.monotonic() - begin:.0f} s, seed {options.seed}")
    if options.out is not None:
        options.out.write_text(found)
    return 0 if all(outcome.equal for outcome in outcomes) else 1


def line(outcome: Outcome) -> str:
    """One run, as soon as it is over."""
    times = ", ".join(
        f"detected {_s(each.detected_s)}, next step {_s(each.recovered_s)}" for each in outcome.recoveries
    )
    said = "; ".join([*([outcome.trouble] if outcome.trouble else []), *outcome.notes])
    return f"({outcome.scenario}) {outcome.script}: {'equal' if outcome.equal else 'NOT EQUAL'}; {times}; {said}"


def _s(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s"


def _wanted(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for key in options.scenarios:
        own = SCENARIOS[key].script
        yield from ((key, script) for script in ([own] if own else options.scripts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.resilience", description=__doc__)
    names = f"of {', '.join(SCENARIOS)}"
    parser.add_argument("--scenarios", type=_names, default=list(SCENARIOS), metavar="A,B", help=f"some {names}")
    parser.add_argument(
        "--scripts", type=_names, default=list(_EACH), metavar="A,B", help=f"some of {', '.join(_EACH)}"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each scenario with each script")
    parser.add_argument("--epochs", type=int, help="shorter or longer trainings than 40 s")
    parser.add_argument("--backups", type=int, help="backups of each shard, where not the product's default")
    parser.add_argument("--seed", type=int, default=0, help="chooses victims and moments, as far as that can be")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table goes here, too")
    options = parser.parse_args()
    for given, known in ((options.scenarios, SCENARIOS), (options.scripts, SCRIPTS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
