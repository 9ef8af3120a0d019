"""How much the nodes could still promise: pure, from the state."""

from collections import Counter

from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.command import Placement, SharingSpec
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.job import Job


class Room:
    """Begins with what the jobs that go on have; whoever plans adds what they are to have, too.

    A node that was set to a smaller capacity than it has promised keeps its promises, and makes no new ones.
    """

    def __init__(self, state: ClusterState) -> None:
        self.roles: dict[NodeId, int] = {}
        """How many processes each node has, or is to have."""
        self._spare = {node: member.capacity for node, member in state.members.items()}
        for job in state.jobs.values():
            if job.goes_on:
                for _, node in job.roles():
                    self.roles[node] = self.roles.get(node, 0) + 1
                for node in job.takes(job.placements):
                    self.take(job.spec, node)

    def spare(self, node: NodeId) -> Capacity:
        """What it could still promise; what it has promised beyond its capacity makes this less than nothing."""
        return self._spare.get(node, Capacity())

    def fits(self, spec: SharingSpec, node: NodeId) -> bool:
        """Could it promise the share of such a job once more?"""
        return not spec.share or self.spare(node).holds(spec.share)

    def take(self, spec: SharingSpec, node: NodeId) -> None:
        """It does."""
        if spec.share:
            self._spare[node] = self.spare(node).without(spec.share)

    def is_full_for(self, job: Job, placements: tuple[Placement, ...]) -> bool:
        """Would these processes of it, instead of those that it has, take what nobody has?"""
        more = Counter(job.takes(placements)) - Counter(job.takes(job.placements))
        for node in more.elements():
            if not self.fits(job.spec, node):
                return True
            self.take(job.spec, node)
        return False
