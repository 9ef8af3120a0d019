"""A model comes to the nodes of a mesh: to one, and to four at once, on links of 200 Mbit/s; and what the daemons need for it.

``python -m bench.models`` prints the seconds, how much each host gave, and the peak memory of the daemons. Hosts are network
namespaces, so it needs root. A model's file is added on one node and copied to a second one (that is "to one"); then a batch
inference makes all others fetch it from those two.
"""

import argparse
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

import dmi
from tests.hosts.hosts import WHY_NOT, Hosts
from tests.mesh.local import until

_WITHIN_S = 300.0
RATIO = 2.0
"""More than this, and four at once are too slow."""
DAEMON_BYTES = 80_000_000


class Wide(nn.Module):
    """Little to compute, and many parameters."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(size_bytes // 4 // 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 4] to [N, 64]."""
        return x @ self.table[:4]


class Peaks:
    """The most memory that each daemon had, looked at every 50 ms."""

    def __init__(self, hosts: Hosts) -> None:
        self.bytes: dict[int, int] = {}
        self._processes = {n: psutil.Process(hosts.pid(n)) for n in range(hosts.size)}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for host, process in self._processes.items():
                self.bytes[host] = max(self.bytes.get(host, 0), process.memory_info().rss)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


def model_at(path: Path, size_bytes: int) -> None:
    """A TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Wide(size_bytes).eval(), torch.zeros(2, 4)).save(path)


def have(hosts: Hosts, blob: str) -> set[int]:
    """Who has the blob, whole."""
    return {n for n in range(hosts.size) if (hosts.node(n) / "blobs" / blob).exists()}


def sent(hosts: Hosts, act: Callable[[], float]) -> tuple[float, list[int]]:
    """What ``act`` gives, and how many MB each host put on its cable meanwhile."""
    before = [hosts.sent_bytes(n) for n in range(hosts.size)]
    seconds = act()
    return seconds, [(hosts.sent_bytes(n) - b) // 1_000_000 for n, b in enumerate(before)]


def main() -> None:
    """Measure and print; exit code 1 when a number is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--mbit", type=int, default=200)
    chosen = parser.parse_args()
    if WHY_NOT:
        raise SystemExit(f"skipped: {WHY_NOT}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_at(folder / "wide.pt", chosen.megabytes * 1_000_000)
        (folder / "slowly.py").write_text("import time\ndef slowly(x):\n    time.sleep(0.05)\n    return x\n")
        np.save(folder / "x.npy", np.zeros((4_096, 4), dtype=np.float32))
        hosts = Hosts(folder / "hosts", 6)
        try:
            hosts.up()
            for n in range(hosts.size):
                hosts.slow(n, chosen.mbit)
            is_missed = measure(hosts, folder)
        finally:
            hosts.close()
    raise SystemExit(int(is_missed))


def measure(hosts: Hosts, folder: Path) -> bool:
    """Both, one after the other; was a number missed?"""
    peaks = Peaks(hosts)
    mesh = dmi.connect(hosts.node(0))
    try:
        one, four = to_one_and_four(hosts, mesh, folder)
    finally:
        peaks.end()
    peak = max(peaks.bytes.values())
    print(f"the most memory of a daemon: {peak / 1e6:.0f} MB")
    return four > RATIO * one or peak > DAEMON_BYTES


def to_one_and_four(hosts: Hosts, mesh: "dmi.Mesh", folder: Path) -> tuple[float, float]:
    """Seconds, each."""
    one, given = sent(hosts, lambda: to_one(hosts, mesh, folder / "wide.pt"))
    print(f"to one node: {one:.1f} s; MB sent by each host {given}", flush=True)
    blob = next(path.name for path in (hosts.node(0) / "blobs").iterdir() if path.stat().st_size > 1_000_000)
    four, given = sent(hosts, lambda: to_all(hosts, mesh, folder, blob))
    print(f"to four at once: {four:.1f} s, {four / one:.2f} times; MB sent by each host {given}")
    return one, four


def to_one(hosts: Hosts, mesh: "dmi.Mesh", path: Path) -> float:
    """Seconds from when the first node has it until the second has."""
    adding = threading.Thread(target=mesh.models.add, args=("wide", path), kwargs={"inputs": ["x=float32[N,4]"]})
    adding.start()
    names = until(lambda: [p.name for p in (hosts.node(0) / "blobs").iterdir() if len(p.name) == 64], _WITHIN_S, "here")
    began = time.monotonic()
    until(lambda: len(have(hosts, names[0])) == 2, _WITHIN_S, "a second copy")
    seconds = time.monotonic() - began
    adding.join()
    return seconds


def to_all(hosts: Hosts, mesh: "dmi.Mesh", folder: Path, blob: str) -> float:
    """Seconds from the submission until every node has it."""
    config = {
        "model": "wide",
        "input": {"kind": "npy", "path": str(folder / "x.npy")},
        "preprocess": f"{folder / 'slowly.py'}:slowly",
        "batch_size": 32,
        "slice_batches": 1,
    }
    began = time.monotonic()
    job = mesh.infer(config, folder / "out")
    until(lambda: len(have(hosts, blob)) == hosts.size, _WITHIN_S, "everywhere")
    seconds = time.monotonic() - began
    job.cancel()
    return seconds


if __name__ == "__main__":
    main()
