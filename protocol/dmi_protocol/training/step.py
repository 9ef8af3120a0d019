"""Which contributions make a step: one bucket's sum over the leaves of one step, gathered in the one fixed order.

The leaves of a step are the leaves of a complete binary tree. A contribution is the sum below one node of that tree, an
aligned subtree; the sum of a node is always *left child plus right child*, so it has the same bits whoever computed
what, in whatever order it came. Tensors are opaque handles here; ``None`` is an explicit *absent*, and absent plus
``x`` is ``x``.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, NewType

from msgspec import Struct

from dmi_protocol.errors import RemoteProtocolError

Handle = NewType("Handle", int)
"""Names a tensor that the shell holds."""


class Subtree(NamedTuple):
    """An aligned run of leaves: ``leaves`` is a power of two and divides ``first``."""

    first: int
    leaves: int

    def contains(self, other: "Subtree") -> bool:
        """Is ``other`` this subtree, or a part of it?"""
        return self.first <= other.first and other.first + other.leaves <= self.first + self.leaves

    def parent(self) -> "Subtree":
        """The subtree of twice the size that this one is half of."""
        return Subtree(self.first - self.first % (2 * self.leaves), 2 * self.leaves)

    def sibling(self) -> "Subtree":
        """The other half of the parent."""
        return Subtree(self.first ^ self.leaves, self.leaves)

    def is_left(self) -> bool:
        """Does the parent start with this half?"""
        return self.first & self.leaves == 0

    def check(self, leaves: int) -> None:
        """Raise ``RemoteProtocolError`` unless this is a subtree of a tree with ``leaves`` leaves."""
        is_power = self.leaves > 0 and self.leaves & (self.leaves - 1) == 0
        if not is_power or self.first < 0 or self.first % self.leaves or self.first + self.leaves > leaves:
            raise RemoteProtocolError(f"leaves {self.first}+{self.leaves} are no aligned subtree of {leaves}")


def cover(leaves: Iterable[int]) -> tuple[Subtree, ...]:
    """The fewest aligned subtrees that hold exactly ``leaves``, from left to right."""
    whole = {Subtree(leaf, 1) for leaf in leaves}
    size = 1
    while True:
        pairs = {node.parent() for node in whole if node.leaves == size and node.sibling() in whole}
        if not pairs:
            return tuple(sorted(whole))
        whole = {node for node in whole if node.leaves != size or node.parent() not in pairs} | pairs
        size *= 2


class Sum(Struct, frozen=True):
    """Add ``right`` to ``left``. ``left`` now names the sum, ``right`` names nothing any more."""

    left: Handle
    right: Handle


class Release(Struct, frozen=True):
    """The tensor is not needed any more."""

    handle: Handle


class Gathering:
    """The sums of one (step, bucket) that have arrived, each leaf in at most one of them.

    ``top`` are the subtrees at which summing stops: the root on a server, the worker's own share on a worker.
    """

    def __init__(self, top: Iterable[Subtree]) -> None:
        self._top = tuple(top)
        self._sums: dict[Subtree, Handle | None] = {}

    @property
    def sums(self) -> dict[Subtree, Handle | None]:
        """What has been summed so far."""
        return dict(self._sums)

    def is_complete(self) -> bool:
        """Has every leaf of every top arrived?"""
        return all(top in self._sums for top in self._top)

    def has(self, subtree: Subtree) -> bool:
        """Has every leaf of ``subtree`` arrived?"""
        return subtree.leaves <= sum(s.leaves if subtree.contains(s) else 0 for s in self._sums) or any(
            s.contains(subtree) for s in self._sums
        )

    def add(self, subtree: Subtree, handle: Handle | None) -> list[Sum | Release]:
        """Take a contribution in: drop it when it is covered, drop what it covers, sum what can be summed."""
        if self.has(subtree):
            return [] if handle is None else [Release(handle)]
        work: list[Sum | Release] = []
        for covered in [s for s in self._sums if subtree.contains(s)]:
            dropped = self._sums.pop(covered)
            if dropped is not None:
                work.append(Release(dropped))
        self._sums[subtree] = handle
        self._combine(subtree, work)
        return work

    def _combine(self, node: Subtree, work: list[Sum | Release]) -> None:
        while node not in self._top and node.sibling() in self._sums:
            mine, other = self._sums.pop(node), self._sums.pop(node.sibling())
            left, right = (mine, other) if node.is_left() else (other, mine)
            if left is not None and right is not None:
                work.append(Sum(left, right))
            node = node.parent()
            self._sums[node] = left if left is not None else right

    def check(self) -> None:
        """Assert that no leaf is counted twice, and that what can be summed is summed."""
        held = sorted(self._sums)
        for one, other in pairwise(held):
            assert one.first + one.leaves <= other.first, f"leaves of {one} are counted twice"
        for node in held:
            assert node in self._top or node.sibling() not in self._sums, f"{node} waits beside its sibling"
        named = [handle for handle in self._sums.values() if handle is not None]
        assert len(named) == len(set(named)), "one tensor stands for two sums"
