"""A batch inference, the nodes that compute it, and a coordinator that has its way at once."""

from collections.abc import Iterable

from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import BatchSpec, BindRole, Command, CommitSlice, HoldBlob, LoseRole, Recopy, Submit
from dmi_protocol.cluster.state import ClusterState, MemberRecord, Outcome
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.reasons import Loss, RoleDied
from tests.protocol.models import adding

A, B, C = (NodeId(letter * 16) for letter in "abc")
BUNDLE = BlobHash("f" * 64)


def blob(slice_: int, what: str = "") -> BlobHash:
    """What is computed for a slice."""
    return BlobHash(f"{what}{slice_}".rjust(64, "0"))


class Table:
    """The job is submitted; nobody is placed."""

    def __init__(self, spec: BatchSpec, nodes: Iterable[NodeId] = (A, B, C)) -> None:
        self.state = ClusterState("mesh")
        self.nodes = set(nodes)
        for node in sorted(self.nodes):
            self.state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
        self._index = 0
        self.do(adding("m", *sorted(self.nodes)[:2]))
        self.id = JobId(self.do(Submit(RequestId("submit"), spec, BUNDLE, tuple(sorted(self.nodes))[:2])).value)

    @property
    def job(self) -> BatchJob:
        """As the state has it."""
        found = self.state.jobs[self.id]
        assert isinstance(found, BatchJob)
        return found

    def do(self, command: Command) -> Outcome:
        """It is in the log."""
        self._index += 1
        return apply(self.state, self._index, command)

    def propose(self) -> list[Command]:
        """What the coordinator wants."""
        return Scheduler().propose(Instant(0), self.state, self.nodes)

    def settle(self, *, copy: bool = True) -> list[Command]:
        """Propose until nothing is due, and bind whoever is placed; gives all that was proposed."""
        self.bind()
        seen: list[Command] = []
        while due := [c for c in self.propose() if copy or not isinstance(c, Recopy)]:
            for command in due:
                assert self.do(command).refusal is None, command
                if isinstance(command, Recopy):
                    request = RequestId(f"{command.request}/held")
                    self.do(HoldBlob(request, command.owner, command.blob, command.node))
            self.bind()
            seen += due
        return seen

    def bind(self) -> None:
        """Everybody who is wanted is there."""
        bound = {record.endpoint.key for record in self.job.endpoints}
        for role, _ in self.job.roles():
            if role not in bound:
                request = RequestId(f"bind/{role.generation}/{role.name}")
                self.do(BindRole(request, role, "h:2", PublicKey("k" * 40), 7))

    def role(self, index: int) -> RoleKey:
        """The replica of this index."""
        return next(role for role, _ in self.job.roles() if role.index == index)

    def commit(self, index: int, slice_: int, what: str = "", failed: int = 0) -> Outcome:
        """The replica of this index has computed a slice."""
        request = RequestId(f"commit/{self._index}")
        return self.do(CommitSlice(request, self.role(index), slice_, blob(slice_, what), 1, failed))

    def lose(self, index: int, reason: Loss | None = None) -> Outcome:
        """That replica is gone."""
        role = self.role(index)
        died = RoleDied(role.name, "n", -9, 9, stalled=False)
        return self.do(LoseRole(RequestId(f"lose/{self._index}"), role, reason or died))
