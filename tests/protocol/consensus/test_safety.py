"""The five promises of Raft (figure 3.2) in bad hours; the simulator of whole peers has many more of them."""

from collections import Counter

import pytest

from tests.protocol.consensus.chaos import Chaos

SEEDS = 30
ACTIONS = 4_000


def live(seed: int) -> Chaos:
    chaos = Chaos(seed)
    for action in range(ACTIONS):
        chaos.act()
        if action % 50 == 0:
            chaos.check_logs()
    chaos.heal()
    return chaos


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_is_broken_and_healing_brings_progress(seed: int) -> None:
    assert live(seed).committed


def test_the_hours_are_bad_enough() -> None:
    counts: Counter[str] = Counter()
    for seed in range(SEEDS, SEEDS + 10):
        counts += live(seed).counts
    kinds = ["elections", "proposals", "crashes", "snapshots", "installs", "transfers"]
    assert all(counts[kind] >= 20 for kind in [*kinds, "torn steps", "voter changes"]), counts
