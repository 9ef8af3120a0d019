"""A deployment, the nodes that serve it, and a coordinator that has its way at once."""

from collections import Counter
from collections.abc import Iterable

from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import BindRole, Command, DeploymentSpec, Drain, LoseRole, Submit
from dmi_protocol.cluster.state import ClusterState, MemberRecord, Outcome
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.messages.roles import Role, RoleKey
from dmi_protocol.reasons import Loss, RoleDied
from tests.protocol.models import adding

A, B, C, D = (NodeId(letter * 16) for letter in "abcd")
NO_FILES = BlobHash("")


class Table:
    """The deployment is submitted, after what came ``before``; nobody is placed."""

    def __init__(
        self, spec: DeploymentSpec, nodes: Iterable[NodeId] = (A, B, C), before: Iterable[Command] = ()
    ) -> None:
        self.state = ClusterState("mesh")
        self.nodes: set[NodeId] = set()
        self._index = 0
        for node in nodes:
            self.join(node)
        self.do(adding("m", *sorted(self.nodes)[:2]))
        for command in before:
            assert self.do(command).refusal is None
        self.id = JobId(self.do(Submit(RequestId("submit"), spec, NO_FILES, ())).value)

    @property
    def job(self) -> DeploymentJob:
        """As the state has it."""
        found = self.state.jobs[self.id]
        assert isinstance(found, DeploymentJob)
        return found

    def join(self, node: NodeId) -> None:
        """A node is there, for the first time or again."""
        self.nodes.add(node)
        self.state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)

    def do(self, command: Command) -> Outcome:
        """It is in the log."""
        self._index += 1
        return apply(self.state, self._index, command)

    def propose(self) -> list[Command]:
        """What the coordinator wants."""
        return Scheduler().propose(Instant(0), self.state, self.nodes)

    def settle(self, *, bind: bool = True) -> list[Command]:
        """Propose until nothing is due, and bind whoever is placed; gives all that was proposed."""
        seen: list[Command] = []
        while due := self.propose():
            for command in due:
                assert self.do(command).refusal is None, command
            if bind:
                self.bind()
            seen += due
            assert len(seen) < 100, "it never settles"
        return seen

    def bind(self) -> None:
        """Everybody who is wanted is there."""
        bound = {record.endpoint.key for record in self.job.endpoints}
        for role, _ in self.job.roles():
            if role not in bound:
                request = RequestId(f"bind/{role.generation}/{role.name}")
                self.do(BindRole(request, role, "h:2", PublicKey("k" * 40), 7))

    def where(self, role: Role) -> list[str]:
        """The letters of the nodes with processes of this role, one for each."""
        return sorted(node[0] for _, node in self.job.placed(role))

    def key(self, role: Role, node: NodeId) -> RoleKey:
        """The process of this role on this node."""
        return next(key for key, place in self.job.placed(role) if place == node)

    def lose(self, role: RoleKey, reason: Loss | None = None) -> Outcome:
        """A process is gone."""
        request = RequestId(f"lost/{role.generation}/{role.name}")
        return self.do(LoseRole(request, role, reason or RoleDied(role.name, "a", 0, 9, stalled=False)))

    def drain(self, node: NodeId) -> None:
        """It is to give its roles away."""
        self.do(Drain(RequestId(f"drain/{node}"), node, on=True))

    def count(self, role: Role) -> Counter[str]:
        """How many of this role each node has."""
        return Counter(self.where(role))
