"""Seconds of a step at an older commit and at this one, in turn, in one run: the exchange alone, without and with a backup, and
AlexNet on three nodes.

``python -m bench.commits COMMIT`` prints the medians and their ratio.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.exchange import mesh

ROOT = Path(__file__).resolve().parents[1]
_WITHIN_S = 1_200.0


def exchange(code: Path, backups: int, parameters: int, steps: int) -> float:
    """Seconds of a step."""
    with tempfile.TemporaryDirectory() as directory:
        return mesh(parameters, 2, 2, 2, steps, Path(directory) / "mesh", backups=backups, code=code)[0]


def alexnet(code: Path) -> float:
    """Seconds of a step."""
    path = ":".join(str(code / part) for part in ("protocol", "node", "sdk"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.alexnet"],
        cwd=code,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=_WITHIN_S,
    )
    found = re.search(r"three nodes +([0-9.]+) s a step", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("commit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--alexnet", action="store_true", help="AlexNet, too, once: minutes")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        old = Path(name) / "old"
        subprocess.run(["git", "clone", "--quiet", ROOT, old], check=True)
        subprocess.run(["git", "checkout", "--quiet", chosen.commit], cwd=old, check=True)
        for backups in (0, 1):
            rounds = [
                [exchange(code, backups, chosen.parameters, chosen.steps) for code in (old, ROOT)]
                for _ in range(chosen.repeats)
            ]
            before, now = (statistics.median(column) for column in zip(*rounds, strict=True))
            what = f"{chosen.parameters:,} parameters, {backups} backups"
            print(f"{what}: {before:.3f} s a step before, {now:.3f} now, {now / before:.2f} of it", flush=True)
        if chosen.alexnet:
            before, now = alexnet(old), alexnet(ROOT)
            print(f"AlexNet on 3 nodes: {before:.2f} s a step before, {now:.2f} now, {now / before:.2f} of it")


if __name__ == "__main__":
    main()
