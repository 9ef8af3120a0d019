"""Who should vote: an odd number of members, at most five; a dead voter is replaced and never merely removed."""

from collections.abc import Sequence, Set

from dmi_protocol import limits
from dmi_protocol.identity import NodeId


def voters_for(members: int) -> int:
    """How many of ``members`` vote: 1, 3 or 5."""
    return max(1, min(limits.VOTERS, members - (members + 1) % 2))


def next_voters(
    voters: Set[NodeId],
    members: Set[NodeId],
    alive: Set[NodeId],
    leader: NodeId,
    witnesses: Set[NodeId] = frozenset(),
) -> frozenset[NodeId] | None:
    """The voters after the one change that is due now; None when none is.

    The number is brought to what the members allow, passing through even numbers only on the way. Whoever is dead, or
    is no member any more, is replaced by a live learner in two changes, the newcomer first, so the quorum never shrinks
    to its advantage. Where there is no learner the dead one stays, and the former member goes. Of ``witnesses`` as many
    vote as can, because that is all that they are there for.
    """
    voters = frozenset(voters)
    former = sorted(voters - members)
    dead = sorted((voters & members) - alive - {leader}, reverse=True)
    learners = sorted((members & alive) - voters, key=lambda node: (node not in witnesses, node))
    target = voters_for(len(members))
    ordinary = sorted(voters - witnesses - {leader}, reverse=True)
    if len(voters) > target:
        return _fewer(voters, [*former, *dead] or ordinary or sorted(voters, reverse=True), alive, leader)
    is_idle_witness = bool(learners) and learners[0] in witnesses and bool(ordinary)
    is_wanted = former or ((dead or is_idle_witness) if len(voters) == target else _can_grow(voters, learners))
    if learners and is_wanted:
        return voters | {learners[0]}
    return _fewer(voters, former, alive, leader)


def _fewer(
    voters: frozenset[NodeId], unfit: Sequence[NodeId], alive: Set[NodeId], leader: NodeId
) -> frozenset[NodeId] | None:
    """Without the first of ``unfit`` whom those left can do without, the leader being the last; None when there is none."""
    there = alive | {leader}
    for node in sorted(unfit, key=lambda node: node == leader):
        rest = voters - {node}
        if 2 * len(rest & there) > len(rest):
            return rest
    return None


def _can_grow(voters: Set[NodeId], learners: Sequence[NodeId]) -> bool:
    """Growing from an odd number takes two newcomers, or the mesh would be left with an even one."""
    return len(voters) % 2 == 0 or len(learners) >= 2
