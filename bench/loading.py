"""A loader process beside a worker: a step whose samples take 5 ms each to decode and as long to compute, on one worker node,
with ``workers=1`` and with ``workers=0``.

``python -m bench.loading`` prints medians. Passes of both kinds take turns within one training; a pass's first step, which begins
with an empty queue, counts too.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import dmi
from tests.mesh.local import LocalMesh

MOST = 0.6
_SCRIPT = Path(__file__).parent / "loading_train.py"


def measured(passes: int, steps: int) -> tuple[dict[int, list[float]], float]:
    """The seconds of each step, by the number of loader processes; and what decoding costs, as a part of computing."""
    with tempfile.TemporaryDirectory() as directory:
        mesh = LocalMesh(Path(directory), 1)
        try:
            mesh.up()
            job = dmi.connect(mesh.home).submit(_SCRIPT, [str(passes), str(steps)], workers=1)
            job.wait()
            lines = [line.split() for _, line in job.logs()]
        finally:
            mesh.close()
    found: dict[int, list[float]] = {0: [], 1: []}
    for workers, seconds in (line[1:] for line in lines if line[:1] == ["step"]):
        found[int(workers)].append(float(seconds))
    spent = [line[1:] for line in lines if line[:1] == ["spent"]]
    return found, statistics.median(float(decoded) / float(computed) for decoded, computed in spent)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--passes", type=int, default=8, help="half of them with a loader process")
    parser.add_argument("--steps", type=int, default=12, help="of a pass")
    chosen = parser.parse_args()
    found, ratio = measured(chosen.passes, chosen.steps)
    here, there = (statistics.median(found[workers]) for workers in (0, 1))
    print(
        f"workers=0 {1000 * here:.0f} ms a step, workers=1 {1000 * there:.0f} ms: {there / here:.2f} (at most {MOST}); "
        f"decoding costs {ratio:.2f} of computing"
    )


if __name__ == "__main__":
    main()
