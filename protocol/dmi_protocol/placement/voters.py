"""Who should vote: an odd number of members, at most five; a dead voter is replaced and never merely removed."""

from collections.abc import Set

from dmi_protocol import limits
from dmi_protocol.identity import NodeId


def voters_for(members: int) -> int:
    """How many of ``members`` vote: 1, 3 or 5."""
    return max(1, min(limits.VOTERS, members - (members + 1) % 2))


def next_voters(
    voters: Set[NodeId], members: Set[NodeId], alive: Set[NodeId], leader: NodeId
) -> frozenset[NodeId] | None:
    """The voters after the one change that is due now; None when none is.

    A voter that is no member any more goes first. Then the number is brought to what the members allow, passing through
    even numbers only on the way. A dead voter is replaced by a live learner in two changes, the newcomer first, so the
    quorum never shrinks to the dead one's advantage.
    """
    voters = frozenset(voters)
    gone = sorted(voters - members)
    learners = sorted((members & alive) - voters)
    target = voters_for(len(members))
    if gone and len(voters) > 1:
        return voters - {gone[0]}
    dead = sorted(voters - alive - {leader})
    if len(voters) < target:
        return voters | {learners[0]} if learners and _can_grow(len(voters), target, len(learners)) else None
    if len(voters) == target:
        return voters | {learners[0]} if dead and learners else None
    surplus = dead or sorted(voters - {leader})
    return voters - {surplus[-1]}


def _can_grow(voters: int, target: int, learners: int) -> bool:
    """Growing from an odd number takes two newcomers, or the mesh would be left with an even one."""
    return voters % 2 == 0 or learners >= 2 or voters + 1 == target
