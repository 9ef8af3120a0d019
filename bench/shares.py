"""Training and serving side by side on one node of this machine, each promised one processor and held to it: how long a step
takes while requests come in as fast as they are answered, and how long it takes alone.

``python -m bench.shares`` prints medians. Phases with and without load take turns within one training, so that whatever else
the machine does befalls both alike. The load generator runs on the processor of what is served. With ``--without`` nothing is
promised to anybody, to see what shares are for.
"""

import argparse
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dmi
from bench.serving import Found, exported, load
from bench.serving_net import body_v2
from tests.mesh.local import LocalMesh, until

SLOWER = 1.15
CONNECTIONS = 16
_SETTLE_S = 1.0
_SCRIPT = Path(__file__).parent / "shares_train.py"


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def steps(path: Path, begin: float, end: float) -> list[float]:
    """The steps that ended between the two, in milliseconds."""
    return [1000 * took for at, took in struct.iter_unpack("dd", path.read_bytes()) if begin <= at <= end]


def asked(mesh: Any, seconds: float, cpus: int | None) -> Found:
    """The net is served anew, and asked; gives what the load generator says, and between which times."""
    deployment = mesh.serve("dense", replicas=1, cpus=cpus)
    url = f"{deployment.ready()[0]}/v2/models/dense/infer"
    gateway = next(role["pid"] for role in mesh.roles() if role["role"] == "gateway")
    time.sleep(_SETTLE_S)
    with on_cores(os.sched_getaffinity(gateway)):
        begin = time.time()
        found = load(url, body_v2("dense"), CONNECTIONS, seconds)
        end = time.time()
    mesh.unserve("dense")
    return found | {"begin": begin, "end": end}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each phase")
    parser.add_argument("--without", action="store_true", help="nothing is promised")
    given = parser.parse_args()
    cpus = None if given.without else 1
    with tempfile.TemporaryDirectory() as folder:
        local, file = LocalMesh(Path(folder) / "mesh", 1), Path(folder) / "steps"
        local.up()
        try:
            mesh = dmi.connect(local.node(0))
            mesh.models.add("dense", exported("dense", Path(folder) / "dense.pt2"))
            mesh.submit(_SCRIPT, [str(file), "3600"], cpus=cpus)
            until(lambda: file.exists() and file.stat().st_size > 16 * 100, 60, "a hundred steps")
            alone, beside, loads = [], [], []
            for _ in range(given.repeats):
                begin = time.time()
                time.sleep(given.seconds)
                alone.append(statistics.median(steps(file, begin, time.time())))
                loads.append(asked(mesh, given.seconds, cpus))
                beside.append(statistics.median(steps(file, loads[-1]["begin"], loads[-1]["end"])))
                until(
                    lambda: all(role["role"] in {"worker", "server"} for role in mesh.roles()), 20, "it serves no more"
                )
        finally:
            local.close()
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    print(f"a step alone {statistics.median(alone):.2f} ms, beside {statistics.median(beside):.2f} ms")
    print(f"slower: {ratio:.3f} (at most {SLOWER}: {'met' if ratio <= SLOWER else 'MISSED'})")
    p50, p99, speed = (statistics.median(f[key] for f in loads) for key in ("p50_ms", "p99_ms", "requests_per_second"))
    print(f"{CONNECTIONS} connections: {speed:,.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, 0 failed")


if __name__ == "__main__":
    main()
