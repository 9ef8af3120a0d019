"""``python -m tests.simulation.planted``: at which seed, and by which checker, each planted bug is caught."""

import argparse
import sys
import time

from tests.simulation.planted.copies import hunt, patches


def main() -> int:
    """Print a line for each bug; 1 when one of them lives on."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1_000, help="the most seeds that a bug is given")
    parser.add_argument("only", nargs="*", help="names of bugs; all of them without any")
    options = parser.parse_args()
    survivors = 0
    for name, patch in patches().items():
        if options.only and name not in options.only:
            continue
        begin = time.monotonic()
        caught = hunt(patch, options.first, options.seeds)
        took = f"{time.monotonic() - begin:.0f} s"
        if caught.seed is None:
            survivors += 1
            print(f"{name}: NOT caught within {options.seeds} seeds ({took})", flush=True)
        else:
            print(f"{name}: seed {caught.seed}, by {caught.checker}: {caught.what} ({took})", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
