"""Seconds of a step that is only its exchange, beside gloo all-reduce and local SGD with momentum, in one run.

``python -m bench.exchange`` prints both medians, their ratio, and the peak memory. Two workers on two made-up nodes, a
server on each, CURVE between the nodes; everything on this machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.roles import MODULES, RoleProcesses
from dmi_protocol.messages.roles import Failed

_WARM_UP = 3
_WITHIN_S = 300.0
DEFECT_RATIO = 6.0
"""A ratio above this is a defect."""


def gloo(parameters: int, workers: int, steps: int, directory: Path) -> float:
    """The median step of gloo, in seconds: of each step the slowest worker's."""
    store = directory / "store"
    children = []
    for rank in range(workers):
        args = (rank, workers, store, parameters, steps, directory / f"gloo-{rank}")
        children.append(subprocess.Popen([sys.executable, "-m", "bench.gloo", *map(str, args)]))
    for child in children:
        if child.wait(_WITHIN_S):
            raise SystemExit("gloo failed")
    columns = [[float(line) for line in (directory / f"gloo-{rank}").read_text().split()] for rank in range(workers)]
    return _median(columns)


def _median(columns: list[list[float]]) -> float:
    """The median over the steps of the slowest worker's seconds, without the first steps."""
    slowest: list[float] = [max(row) for row in zip(*columns, strict=True)]
    return statistics.median(slowest[_WARM_UP:])


def mesh(
    parameters: int,
    workers: int,
    servers: int,
    leaves: int,
    steps: int,
    directory: Path,
    *,
    backups: int = 0,
    code: Path | None = None,
) -> tuple[float, int]:
    """The median step of the mesh in seconds, and the sum of its workers' peak memory in bytes. ``code`` is another
    checkout, whose packages the processes run."""
    command = ("-m", "bench.exchange_worker")
    script = Path(__file__)
    args = tuple(map(str, (parameters, leaves, steps)))
    with RoleProcesses(
        directory,
        script,
        workers=workers,
        servers=servers,
        leaves=leaves,
        args=args,
        environment={"PYTHONPATH": _path(script.resolve().parents[1], code)},
        modules={**MODULES, "worker": command},
        backups=backups,
    ) as roles:
        roles.introduce()
        said = roles.finish(_WITHIN_S)
        failures = [message for told in said.values() for message in told if isinstance(message, Failed)]
        if failures:
            raise SystemExit(f"the mesh failed: {failures[0].text}")
    found = [json.loads((directory / f"worker-{index}" / "seconds.json").read_text()) for index in range(workers)]
    return _median([each["seconds"] for each in found]), sum(each["peak_bytes"] for each in found)


def _path(root: Path, code: Path | None) -> str:
    parts = [] if code is None else [code / part for part in ("protocol", "node", "sdk")]
    return ":".join(map(str, [*parts, root]))


def main() -> None:
    """Measure and print; exit code 1 when the ratio is a defect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--leaves", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--backups", type=int, default=0)
    chosen = parser.parse_args()
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        peer = gloo(chosen.parameters, chosen.workers, chosen.steps, directory)
        ours, peak = mesh(
            chosen.parameters,
            chosen.workers,
            chosen.workers,
            chosen.leaves,
            chosen.steps,
            directory / "mesh",
            backups=chosen.backups,
        )
    ratio = ours / peer
    print(f"{chosen.parameters:,} float32 parameters, {chosen.workers} workers, TCP congestion control: {control}")
    print(f"gloo all-reduce + SGD momentum   {peer:.3f} s a step (median of {chosen.steps - _WARM_UP})")
    print(f"DMI, a server on each, CURVE     {ours:.3f} s a step; workers' peak memory {peak / 1e9:.1f} GB in all")
    print(f"ratio                            {ratio:.2f}" + (" (a defect)" if ratio > DEFECT_RATIO else ""))
    raise SystemExit(ratio > DEFECT_RATIO)


if __name__ == "__main__":
    main()
