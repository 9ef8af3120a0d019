"""Each planted bug applies to the production code as it is now, is small, and is caught; a faithful copy is not accused."""

import pytest

from tests.simulation.planted.copies import MOST_CHANGED_LINES, changed_lines, hunt, patches

EXPECTED = {
    "checkpoint-on-one-disk": {"parts"},
    "copy-without-the-version-before": {"versions"},
    "filling-copy-promoted": {"survival", "crash"},
    "guest-holds-no-version": {"versions", "progress"},
    "incarnation-not-checked": {"incarnations"},
    "leaf-counted-twice": {"invariants", "leaves"},
    "older-term-by-counting": {"committed"},
    "promise-on-a-full-disk": {"durable"},
    "shown-before-it-is-copied": {"survival", "primaries", "versions", "progress"},
    "shown-without-a-lease": {"leases"},
    "stale-generation-accepted": {"generations"},
    "started-without-its-parts": {"parts"},
    "sums-not-pushed-again": {"progress"},
    "version-given-up-early": {"versions"},
    "vote-before-persisted": {"votes", "leaders"},
}
"""By bug, the checkers that may find it."""


def test_every_bug_of_the_list_is_planted() -> None:
    assert patches().keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_small_and_caught(name: str) -> None:
    patch = patches()[name]
    assert 0 < changed_lines(patch) <= MOST_CHANGED_LINES
    caught = hunt(patch, first=0, seeds=150)
    assert caught.seed is not None, "see make planted, which gives it a thousand seeds"
    assert caught.checker in EXPECTED[name], caught


def test_a_faithful_copy_is_not_accused() -> None:
    assert hunt(None, first=0, seeds=4).seed is None
