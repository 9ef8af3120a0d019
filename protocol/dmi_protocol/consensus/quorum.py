"""The arithmetic of majorities."""

from collections.abc import Collection, Mapping, Set

from dmi_protocol.identity import NodeId


def is_quorum(voters: Set[NodeId], agreeing: Collection[NodeId]) -> bool:
    """Are more than half of ``voters`` among ``agreeing``? Never true of no voters."""
    return sum(voter in voters for voter in set(agreeing)) * 2 > len(voters)


def committed_index(voters: Set[NodeId], matched: Mapping[NodeId, int]) -> int:
    """The highest index that more than half of ``voters`` have; who is not in ``matched`` has nothing."""
    reached = sorted((matched.get(voter, 0) for voter in voters), reverse=True)
    return reached[len(reached) // 2] if reached else 0
