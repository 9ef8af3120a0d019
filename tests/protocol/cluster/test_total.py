"""Any command, however odd, is applied or refused, and the same everywhere: nobody's state machine stops at an entry that
all others have in their logs, too."""

from random import Random
from typing import Any, get_args, get_origin

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import BindRole, Command, DeploymentSpec, Spec, Submit, TrainingSpec
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId, job_id
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.hosting import Hosting
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.kind import Host
from dmi_protocol.view import job_view, member_views
from tests.protocol.models import adding, batch, deployment

NODES = tuple(NodeId(letter * 16) for letter in "abc")
SPECS: tuple[Spec, ...] = (
    TrainingSpec("job", "t.py", workers=2),
    TrainingSpec("job", "t.py"),
    batch(7, 2, name="job"),
    deployment("job", replicas=2),
)
JOBS = tuple(job_id("job", RequestId(f"submit-{n}")) for n in range(len(SPECS)))
KINDS = get_args(Command)
NOW = Instant(5)


class Odd:
    """Makes a value of any type: often one that fits, and often one that fits nothing."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._made = 0

    def of(self, kind: Any, name: str = "") -> Any:
        random = self._random
        if kind is RequestId:
            self._made += 1
            return RequestId(f"r{self._made}")
        if kind is NodeId:
            return random.choice([*NODES, NodeId("d" * 16), NodeId("")])
        if kind is JobId:
            return random.choice([*JOBS, JobId("x")])
        if kind is BlobHash:
            return BlobHash(random.choice("12") * 64)
        if kind is PublicKey:
            return PublicKey(random.choice(["k" * 40, "é", ""]))
        if kind is int:
            return random.choice([-1, 0, 0, 0, 1, 1, 1, 2, 3, 7, 2**40])
        if kind is float:
            return random.choice([0.0, 1.0, 1.0, 2.5, -1.0, float("inf"), float("nan")])
        if kind is bool:
            return random.random() < 0.5
        if kind is str:
            words = ["h:1", "succeeded", "failed", "running", "", "odd", "n0"]
            return random.choice(["failed", "succeeded"] if name == "state" else words)
        if kind is type(None):
            return None
        return self._composed(kind)

    def _composed(self, kind: Any) -> Any:
        random, origin, arguments = self._random, get_origin(kind), get_args(kind)
        if origin is tuple and arguments[-1] is ...:
            return tuple(self.of(arguments[0]) for _ in range(random.choice([0, 1, 1, 2, 2, 3])))
        if origin is tuple:
            return tuple(map(self.of, arguments))
        if str(origin) == "typing.Literal":
            return random.choice(arguments)
        if arguments:
            return self.of(random.choice(arguments))
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind(**{field.name: self.of(field.type, field.name) for field in msgspec.structs.fields(kind)})
        return self.of(kind.__supertype__)


def begun() -> ClusterState:
    """Three members and a job or two of each kind."""
    state = ClusterState("mesh")
    for node in NODES:
        state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
    apply(state, 1, adding("m", *NODES[:2]))
    for n in range(len(JOBS)):
        submit = Submit(RequestId(f"submit-{n}"), SPECS[n], _bundle(SPECS[n]), NODES[:2])
        assert apply(state, n + 2, submit).value == JOBS[n]
    return state


def _bundle(spec: Spec) -> BlobHash:
    return BlobHash("" if isinstance(spec, DeploymentSpec) else "1" * 64)


def look(state: ClusterState, random: Random) -> None:
    """All that follows from a state can be worked out."""
    alive = frozenset(node for node in state.members if random.random() < 0.8)
    Scheduler().propose(NOW, state, alive)
    hosting = Hosting(Host(NODES[0], "a", "h", (0, 0)), lambda _: None)
    hosting.reconcile(Instant(0), state)
    hosting.drop_kept(state)
    member_views(state, set(NODES), lambda _: "alive", lambda _: None)
    for job in state.jobs.values():
        job_view(job, state, alive, None)
    assert ClusterState.decode(state.encode()).digest() == state.digest()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_any_command_is_applied_or_refused_the_same_everywhere(seed: int) -> None:
    random = Random(seed)
    odd, here, there = Odd(random), begun(), begun()
    for index in range(10, 50):
        if random.random() < 0.4:  # the mesh goes on meanwhile, so that odd commands meet every kind of state
            due = Scheduler().propose(NOW, here, frozenset(NODES))
            commands = due or endpoints(here, index)
        else:
            commands = [odd.of(random.choice(KINDS))]
        for command in commands:
            assert apply(here, index, command) == apply(there, index, command)
        look(here, random)
    assert here.digest() == there.digest()


def endpoints(state: ClusterState, index: int) -> list[Command]:
    """Whoever is wanted is bound."""
    return [
        BindRole(
            RequestId(f"endpoint-{role.generation}-{role.name}-{job.id}-{index}"), role, "h:2", PublicKey("k" * 40), 7
        )
        for job in state.jobs.values()
        for role, _ in job.roles()
    ]
