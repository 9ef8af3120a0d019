"""The leaf tree against a dumb twin: any order, split and repetition of contributions gives the one fixed sum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.training.step import Gathering, Handle, Release, Subtree, Sum, cover

Value = str | None


def fixed(first: int, leaves: int, absent: frozenset[int]) -> Value:
    """The dumb twin: the sum below a node, written out with its brackets."""
    if leaves == 1:
        return None if first in absent else str(first)
    half = leaves // 2
    left, right = fixed(first, half, absent), fixed(first + half, half, absent)
    if left is None or right is None:
        return left if left is not None else right
    return f"({left}+{right})"


class Tensors:
    """A shell whose tensors are their own history."""

    def __init__(self) -> None:
        self.held: dict[Handle, str] = {}
        self._next = 0

    def put(self, value: Value) -> Handle | None:
        if value is None:
            return None
        self._next += 1
        self.held[Handle(self._next)] = value
        return Handle(self._next)

    def do(self, work: list[Sum | Release]) -> None:
        for effect in work:
            if isinstance(effect, Sum):
                self.held[effect.left] = f"({self.held[effect.left]}+{self.held.pop(effect.right)})"
            else:
                del self.held[effect.handle]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, frozenset[int], list[Subtree]]:
    """Subtrees of a tree in any order, with repetitions and covers, that hold every leaf at least once."""
    leaves = draw(st.sampled_from([1, 2, 4, 8, 16]))
    sizes = [1 << n for n in range(leaves.bit_length()) if 1 << n <= leaves]
    nodes = [Subtree(first, size) for size in sizes for first in range(0, leaves, size)]
    extra = draw(st.lists(st.sampled_from(nodes), max_size=12))
    absent = draw(st.frozensets(st.integers(0, leaves - 1)))
    return leaves, absent, draw(st.permutations([*extra, *(Subtree(leaf, 1) for leaf in range(leaves))]))


@given(arrivals())
def test_any_arrival_gives_the_same_sum(case: tuple[int, frozenset[int], list[Subtree]]) -> None:
    leaves, absent, nodes = case
    root = Subtree(0, leaves)
    gathering, tensors = Gathering([root]), Tensors()
    for node in nodes:
        tensors.do(gathering.add(node, tensors.put(fixed(node.first, node.leaves, absent))))
        gathering.check()
    assert gathering.is_complete()
    handle = gathering.sums[root]
    assert (None if handle is None else tensors.held[handle]) == fixed(0, leaves, absent)
    assert len(tensors.held) == (0 if handle is None else 1), "nothing but the sum is kept"


@given(st.sets(st.integers(0, 31)))
def test_a_cover_holds_exactly_its_leaves_and_cannot_be_coarser(leaves: set[int]) -> None:
    nodes = cover(leaves)
    held = [leaf for node in nodes for leaf in range(node.first, node.first + node.leaves)]
    assert held == sorted(leaves)
    for node in nodes:
        node.check(32)
        assert node.sibling() not in nodes


def test_an_unaligned_run_is_its_few_aligned_subtrees() -> None:
    assert cover(range(3, 8)) == (Subtree(3, 1), Subtree(4, 4))


def test_a_covering_duplicate_replaces_what_came_of_it_and_a_covered_one_is_dropped() -> None:
    gathering = Gathering([Subtree(0, 4)])
    assert gathering.add(Subtree(1, 1), Handle(1)) == []
    assert gathering.add(Subtree(0, 2), Handle(2)) == [Release(Handle(1))]
    assert gathering.add(Subtree(1, 1), Handle(3)) == [Release(Handle(3))]
    assert gathering.sums == {Subtree(0, 2): Handle(2)}


def test_a_gathering_stops_at_its_tops() -> None:
    gathering = Gathering(cover([2, 3, 4]))
    gathering.add(Subtree(3, 1), Handle(3))
    gathering.add(Subtree(4, 1), Handle(4))
    assert not gathering.is_complete()
    assert gathering.add(Subtree(2, 1), Handle(2)) == [Sum(Handle(2), Handle(3))]
    assert gathering.is_complete()
    assert gathering.sums == {Subtree(2, 2): Handle(2), Subtree(4, 1): Handle(4)}


@pytest.mark.parametrize("node", [Subtree(1, 2), Subtree(0, 3), Subtree(0, 0), Subtree(8, 1), Subtree(-4, 4)])
def test_what_is_no_aligned_subtree_is_refused(node: Subtree) -> None:
    with pytest.raises(RemoteProtocolError):
        node.check(8)
