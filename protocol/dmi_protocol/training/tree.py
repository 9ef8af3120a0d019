"""Which samples are in which leaf, and which leaves fall to which worker: fixed rules, so nobody needs to be asked."""

from collections.abc import Sequence
from itertools import pairwise


def leaf_sizes(samples: int, leaves: int) -> tuple[int, ...]:
    """How many of a batch's ``samples`` each leaf gets: they differ by at most one, the larger ones come first."""
    size, larger = divmod(samples, leaves)
    return tuple(size + (leaf < larger) for leaf in range(leaves))


def leaf_range(samples: int, leaves: int, leaf: int) -> range:
    """The places in the batch of the samples in ``leaf``; empty for an absent leaf."""
    size, larger = divmod(samples, leaves)
    start = leaf * size + min(leaf, larger)
    return range(start, start + size + (leaf < larger))


def shares(speeds: Sequence[float], leaves: int) -> tuple[range, ...]:
    """The run of leaves of each worker, in proportion to ``speeds``; a worker may get none, and with speed 0.0 gets none.

    Every boundary is the rounded prefix sum of the speeds, so the shares of equal workers differ by at most one.
    Raises ``ValueError`` when a speed is negative or no number, or when there is none above 0.0.
    """
    if not any(speeds) or any(not 0 <= speed < float("inf") for speed in speeds):
        raise ValueError(f"speeds must be 0.0 or more, and not all 0.0: {list(speeds)}")
    total, reached, cuts = sum(speeds), 0.0, [0]
    for speed in speeds[:-1]:
        reached += speed
        cuts.append(min(leaves, max(cuts[-1], round(leaves * reached / total))))
    cuts.append(leaves)
    return tuple(range(start, end) for start, end in pairwise(cuts))
