"""Who votes: an odd number, at most five, changed by one at a time and never into a corner."""

from collections.abc import Set
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol import limits
from dmi_protocol.identity import NodeId
from dmi_protocol.placement.voters import next_voters, voters_for

NODES = [NodeId(letter * 16) for letter in "abcdefgh"]
A, B, C, D = NODES[:4]


def settle(
    voters: set[NodeId],
    members: set[NodeId],
    alive: set[NodeId],
    leader: NodeId,
    witnesses: Set[NodeId] = frozenset(),
) -> list[frozenset[NodeId]]:
    """Every set of voters on the way, while nothing else changes; the leader stays while it votes."""
    steps = [frozenset(voters)]
    while (after := next_voters(steps[-1], members, alive, leader, witnesses)) is not None:
        assert len(after ^ steps[-1]) == 1, "one at a time"
        steps.append(after)
        assert len(steps) < 20, "it never ends"
        if leader not in after:
            break
    return steps


def test_one_three_or_five() -> None:
    assert [voters_for(members) for members in range(1, 9)] == [1, 1, 3, 3, 5, 5, 5, 5]


def test_two_members_have_one_voter() -> None:
    assert settle({A}, {A, B}, {A, B}, A) == [{A}]


def test_a_third_member_makes_three() -> None:
    assert settle({A}, {A, B, C}, {A, B, C}, A)[-1] == {A, B, C}


def test_one_newcomer_is_not_enough_to_grow() -> None:
    assert settle({A}, {A, B, C}, {A, B}, A) == [{A}], "two voters survive no loss at all"


def test_a_dead_voter_is_replaced_the_newcomer_first() -> None:
    assert settle({A, B, C}, {A, B, C, D}, {A, B, D}, A) == [{A, B, C}, {A, B, C, D}, {A, B, D}]


def test_a_dead_voter_without_a_replacement_stays() -> None:
    assert settle({A, B, C}, {A, B, C}, {A, B}, A) == [{A, B, C}]


def test_a_former_member_is_replaced_too() -> None:
    assert settle({A, B, C}, {A, B, D}, {A, B, C, D}, A)[-1] == {A, B, D}


def test_the_only_voter_hands_its_vote_over_before_it_goes() -> None:
    """Two nodes, and the coordinator leaves: without this the other one could never agree on anything."""
    assert settle({A}, {B}, {A, B}, A) == [{A}, {A, B}, {B}]


def test_the_only_voter_stays_while_nobody_can_follow_it() -> None:
    assert settle({A}, {B}, {A}, A) == [{A}]


def test_nobody_goes_when_those_left_could_agree_on_nothing() -> None:
    """C is on its way out, B and D are dead: A and C still agree, A and B would not."""
    assert settle({A, B, C}, {A, B, D}, {A, C}, A) == [{A, B, C}]


def test_of_two_former_members_the_dead_one_goes_first() -> None:
    """Without B, A and C could agree on nothing; without C, A and B can, and then A alone."""
    assert settle({A, B, C}, {A}, {A, B}, A) == [{A, B, C}, {A, B}, {A}]


def test_two_nodes_and_a_witness_have_three_voters() -> None:
    assert settle({A}, {A, B, C}, {A, B, C}, A, {C})[-1] == {A, B, C}


def test_a_witness_votes_where_not_all_can() -> None:
    five, everybody = set(NODES[:5]), set(NODES[:6])
    witness = NODES[5]
    assert settle(five, everybody, everybody, A, {witness})[-1] == {*NODES[:4], witness}
    assert settle(five, everybody, everybody - {witness}, A, {witness})[-1] == five, "it is away"
    assert settle({A, B, C}, {A, B, C, D}, {A, B, C, D}, A, {D})[-1] == {A, B, D}
    assert settle({A, B, D}, {A, B, D}, {A, B, D}, A, {D})[-1] == {A, B, D}


def test_a_witness_is_the_last_to_lose_its_vote() -> None:
    assert settle({A, B, C}, {A, C}, {A, C}, A, {C}) == [{A, B, C}, {A, C}, {A}], "and never before the leader"
    assert settle({A, B, C}, {B, C}, {A, B, C}, C, {B})[-1] == {C}


def test_more_witnesses_than_votes_are_at_rest() -> None:
    everybody = set(NODES[:7])
    steps = settle(set(NODES[:5]), everybody, everybody, A, everybody - {A})
    assert steps == [set(NODES[:5])]


nodes = st.sets(st.sampled_from(NODES))


@given(
    voters=nodes.filter(lambda s: 1 <= len(s) <= limits.VOTERS),
    members=nodes,
    alive=nodes,
    witnesses=nodes,
    data=st.data(),
)
def test_any_mesh_with_a_quorum_keeps_it(
    voters: set[NodeId], members: set[NodeId], alive: set[NodeId], witnesses: set[NodeId], data: st.DataObject
) -> None:
    leader = data.draw(st.sampled_from(sorted(voters)))
    there = alive | {leader}
    steps = settle(voters, members, alive, leader, witnesses)
    for before, after in pairwise(steps):
        if 2 * len(before & there) > len(before):
            assert 2 * len(after & there) > len(after)
        assert len(after) <= limits.VOTERS + 1
        assert leader in after or leader not in members, "a leader that stays a member keeps its vote"
    last = steps[-1]
    is_whole = members <= there and leader in members and 2 * len(set(voters) & there) > len(voters)
    if is_whole:
        assert len(last) == voters_for(len(members))
        assert last <= members
        idle = (witnesses & members) - last
        assert not idle or last - {leader} <= witnesses, "a witness votes before anybody else but the leader"
