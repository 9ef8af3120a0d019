"""``python -m tests.simulation --seeds 1000``: that many universes; ``--seed N`` is one of them, again."""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.universe import REQUIRED, Report, run


def main() -> int:
    """Print what was found; 1 when something was violated or never happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many universes")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--jobs", type=int, default=1, help="so many at once")
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    begin = time.monotonic()
    with multiprocessing.Pool(options.jobs) as pool:
        reports = map(run, seeds) if options.jobs == 1 else pool.imap(run, seeds, chunksize=4)
        return conclude(reports, begin, stop=options.stop, is_sample=len(seeds) < 20)


def conclude(reports: Iterable[Report], begin: float, *, stop: bool, is_sample: bool) -> int:
    """Print every violation as it is found, and the sums at the end."""
    counters: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failed: list[int] = []
    count = 0
    for report in reports:
        count += 1
        counters += report.counters
        faults += report.faults
        if report.checker:
            failed.append(report.seed)
            print(f"seed {report.seed}: {report.checker}: {report.what}", flush=True)
            if stop:
                break
    took = time.monotonic() - begin
    print(f"{count} seeds in {took:.1f} s, {count / took:.1f} seeds a second, {len(failed)} failed {failed}")
    print("counters:", ", ".join(f"{name} {number}" for name, number in sorted(counters.items())))
    print("faults:", ", ".join(f"{name} {number}" for name, number in sorted(faults.items())))
    never = [name for name in REQUIRED if not counters[name]]
    if never and not is_sample:
        print(f"never happened: {', '.join(never)}")
    return 1 if failed or (never and not is_sample) else 0


if __name__ == "__main__":
    sys.exit(main())
