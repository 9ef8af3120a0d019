"""An evaluation that costs as much as an epoch, on one worker and on three: how long it takes.

``python -m bench.evaluation`` prints medians. A sample costs waiting and no processor time, as on hosts that each have their own
device: three nodes of this machine share its processors.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import dmi
from tests.mesh.local import LocalMesh

MOST = 0.5
_SCRIPT = Path(__file__).parent / "evaluation_train.py"


def measured(waits_ms: float) -> dict[int, dict[str, float]]:
    """Median seconds of an epoch and of an evaluation, by the number of workers."""
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        mesh = LocalMesh(Path(directory), 3)
        try:
            mesh.up()
            for workers in (1, 3):
                job = dmi.connect(mesh.home).submit(_SCRIPT, [str(waits_ms)], workers=workers)
                job.wait()
                lines = [line.split() for _, line in job.logs()]
                found[workers] = {
                    what: statistics.median(float(line[1]) for line in lines if line[:1] == [what])
                    for what in ("trained", "evaluated")
                }
        finally:
            mesh.close()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--waits-ms", type=float, default=8.0, help="of a sample")
    found = measured(parser.parse_args().waits_ms)
    for workers, seconds in found.items():
        print(f"{workers} workers: an epoch {seconds['trained']:.2f} s, an evaluation {seconds['evaluated']:.2f} s")
    print(f"evaluation, 3 workers against 1: {found[3]['evaluated'] / found[1]['evaluated']:.2f} (at most {MOST})")


if __name__ == "__main__":
    main()
