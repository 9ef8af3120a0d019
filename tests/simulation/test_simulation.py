"""Two hundred universes, fifteen of them for every change, and that each one is what it claims to be."""

import subprocess
import sys
from collections import Counter

import pytest

from tests.simulation.universe import REQUIRED, run

_CHUNK = 15
_CHUNKS = 14
_GATE = 5
"""This chunk guards every change, for in it happens all that is required; the others are deep."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "chunk", [pytest.param(chunk, marks=() if chunk == _GATE else pytest.mark.deep) for chunk in range(_CHUNKS)]
)
def test_nothing_is_violated_and_life_goes_on(chunk: int) -> None:
    counters: Counter[str] = Counter()
    for seed in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
        report = run(seed)
        assert not report.checker, f"python -m tests.simulation --seed {seed}: {report.checker}: {report.what}"
        assert report.peers >= 5
        assert report.virtual_ms >= 60_000
        assert sum(report.faults.values()) >= 20
        assert len(report.faults) >= 5
        counters += report.counters
    assert chunk != _GATE or all(counters[name] for name in REQUIRED), counters


def test_a_seed_is_one_universe_in_every_process() -> None:
    """Whatever order a set of strings has in this one or that one."""
    program = "from tests.simulation.universe import run; print(run(17).trace)"
    traces = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env={"PYTHONHASHSEED": hashes})
        .stdout.decode()
        .strip()
        for hashes in ("1", "2")
    }
    assert len(traces) == 1
    assert run(12).trace not in {int(trace) for trace in traces}
