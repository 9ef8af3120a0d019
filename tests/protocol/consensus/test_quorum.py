"""The arithmetic of majorities beside a dumb twin that counts."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.consensus.quorum import committed_index, is_quorum
from dmi_protocol.identity import NodeId

NODES = [NodeId(name) for name in "abcdefghi"]
voters = st.frozensets(st.sampled_from(NODES), max_size=7)
anybody = st.lists(st.sampled_from(NODES), max_size=12)


def is_quorum_by_counting(voters: frozenset[NodeId], agreeing: list[NodeId]) -> bool:
    yes = no = 0
    for voter in voters:
        if voter in agreeing:
            yes += 1
        else:
            no += 1
    return yes > no


@given(voters, anybody)
def test_a_quorum_is_more_yes_than_no(voters: frozenset[NodeId], agreeing: list[NodeId]) -> None:
    assert is_quorum(voters, agreeing) == is_quorum_by_counting(voters, agreeing)


@given(voters, anybody, anybody)
def test_two_quorums_share_a_voter(voters: frozenset[NodeId], some: list[NodeId], others: list[NodeId]) -> None:
    if is_quorum(voters, some) and is_quorum(voters, others):
        assert set(some) & set(others) & voters


def test_quorums_before_and_after_a_change_of_one_share_a_voter() -> None:
    for size in range(1, 6):
        before, after = frozenset(NODES[:size]), frozenset(NODES[: size + 1])
        for old in (set(c) for n in range(size + 1) for c in combinations(sorted(before), n)):
            for new in (set(c) for n in range(size + 2) for c in combinations(sorted(after), n)):
                if is_quorum(before, old) and is_quorum(after, new):
                    assert old & new


def test_nobody_is_no_quorum() -> None:
    assert not is_quorum(frozenset(), [NodeId("a")])
    assert committed_index(frozenset(), {NodeId("a"): 9}) == 0


@given(voters, st.dictionaries(st.sampled_from(NODES), st.integers(0, 20)))
def test_what_is_committed_is_the_highest_index_that_a_quorum_has(
    voters: frozenset[NodeId], matched: dict[NodeId, int]
) -> None:
    highest = 0
    for index in range(1, 21):
        if is_quorum_by_counting(voters, [node for node, has in matched.items() if has >= index]):
            highest = index
    assert committed_index(voters, matched) == highest
