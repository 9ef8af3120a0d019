"""What a node can say of the mesh, as plain data: the same fields that ``status --json`` shows."""

from collections.abc import Callable, Iterable, Set

from msgspec import Struct

from dmi_protocol import reasons
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.gossip_facts import NodeFacts
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import ENDED, QUEUED, RECOVERING, RUNNING, STARTING
from dmi_protocol.messages.roles import Progressed, Served
from dmi_protocol.model import ModelRef
from dmi_protocol.placement.room import Room
from dmi_protocol.sentences import detail, sentence


class RoleView(Struct, frozen=True):
    """A role process that is bound."""

    job: str
    role: str
    node: str
    pid: int
    shards: tuple[tuple[int, bool], ...]
    """Each shard that it has a copy of, and whether it is the primary; copies that are being filled are not counted."""


class MemberView(Struct, frozen=True):
    """A member. ``pid`` and ``version`` are what it gossips; None until that has been heard. A ``witness`` plays no role."""

    name: str
    id: str
    state: str
    address: str
    voter: bool
    roles: tuple[RoleView, ...]
    pid: int | None
    version: str | None
    witness: bool
    cpus: int
    memory: int
    """What it has for jobs; memory is in bytes."""
    cpus_left: int
    memory_left: int
    """What it could still promise."""
    trouble: str | None
    """Why it votes on nothing and gets no roles, although it is alive."""


class JobView(Struct, frozen=True):
    """A job. ``sentence`` says why it is in its state, ``detail`` is what a role process said at length."""

    id: str
    name: str
    kind: str
    state: str
    generation: int
    step: int | None
    steps: int | None
    samples_per_second: float | None
    loss: float | None
    cpus: int | None
    memory: int | None
    """What it is promised of each node, or for each replica, and held to."""
    failed_inputs: int | None
    """Of a batch inference: how many of those that are done are error rows."""
    reason: str | None
    sentence: str
    detail: str | None


class DeploymentView(Struct, frozen=True):
    """A model that is served, cut into so many ``stages``; of a hundred requests that name no version ``share`` go to the canary.
    ``urls`` are those of its gateways; requests are counted since each gateway began, the speed and the times that a request took
    are those of the last seconds: None where no request was heard of."""

    job: str
    model: str
    version: int
    canary: int | None
    share: int
    pinned: bool
    state: str
    stages: int
    memory_per_replica: int | None
    replicas: tuple[str, ...]
    gateways: tuple[str, ...]
    urls: tuple[str, ...]
    requests: int
    failed: int
    requests_per_second: float | None
    p50_ms: float | None
    p99_ms: float | None


class View(Struct, frozen=True):
    """See the module. ``quorum_reason`` is None while there is a quorum."""

    mesh: str
    node: str
    coordinator: str | None
    term: int
    quorum: bool
    quorum_reason: str | None
    members: tuple[MemberView, ...]
    jobs: tuple[JobView, ...]
    deployments: tuple[DeploymentView, ...] = ()


def job_view(job: AnyJob, state: ClusterState, alive: Set[NodeId], progress: Progressed | None) -> JobView:
    """One job. ``progress`` counts while it runs; afterwards the state has the last step and loss."""
    reason, counts = why(job, state, alive), kind_of(job).views.counts(job, progress)
    return JobView(
        id=job.id,
        name=job.spec.name,
        kind=kind_of(job).name,
        state=job.state,
        generation=job.generation,
        step=counts.step,
        steps=counts.steps,
        samples_per_second=counts.samples_per_second,
        loss=counts.loss,
        cpus=job.spec.cpus,
        memory=job.spec.memory,
        failed_inputs=counts.failed_inputs,
        reason=sentence(reason) if job.reason is not None else None,
        sentence=sentence(reason),
        detail=detail(reason),
    )


def deployment_view(job: DeploymentJob, served: Callable[[NodeId], Served | None]) -> DeploymentView:
    """One deployment. The times of all gateways are those of the slowest: quantiles cannot be averaged."""
    gateways = job.bound("gateway")
    told = [found for endpoint in gateways if (found := served(endpoint.node)) is not None]
    busy = [found for found in told if found.requests_per_second > 0]
    return DeploymentView(
        job=job.id,
        model=job.spec.name,
        version=_number(job.versions.current),
        canary=_number(job.versions.canary) if job.versions.canary is not None else None,
        share=job.versions.share,
        pinned=job.pinned,
        state=job.state,
        stages=job.stages,
        memory_per_replica=job.spec.memory_per_replica,
        replicas=tuple(endpoint.node_name for endpoint in job.bound("replica")),
        gateways=tuple(endpoint.node_name for endpoint in gateways),
        urls=tuple(f"{'https' if job.spec.certificate else 'http'}://{endpoint.address}" for endpoint in gateways),
        requests=sum(found.requests for found in told),
        failed=sum(found.failed for found in told),
        requests_per_second=sum(found.requests_per_second for found in told) if told else None,
        p50_ms=max((found.p50_ms for found in busy), default=None),
        p99_ms=max((found.p99_ms for found in busy), default=None),
    )


def _number(ref: ModelRef) -> int:
    return int(ref.id.rpartition(":")[2])


def why(job: AnyJob, state: ClusterState, alive: Set[NodeId]) -> reasons.Reason:
    """Why the job is in its state."""
    kind = kind_of(job).views
    if (full := _full(job, state, alive)) is not None:
        return full
    if job.state == RECOVERING:
        assert isinstance(job.reason, reasons.Loss)
        away = kind.away(job, alive)
        return kind.recovering(job, job.reason, _names(state, away))
    if job.state == RUNNING and isinstance(job.reason, reasons.Loss):
        return kind.weakened(job, job.reason)
    if job.reason is not None:
        return job.reason
    have_none = {node for _, node in job.roles()} - set(job.holders)
    are_away = bool(job.files()) and not set(job.holders) & alive
    if job.state in {QUEUED, STARTING} and are_away and (have_none or not job.is_placed):
        return reasons.FilesAway(_names(state, job.holders))
    ready = sum(node in alive and not member.witness for node, member in state.members.items())
    if job.state == STARTING:
        bound = {record.endpoint.key for record in job.endpoints}
        awaited = [(r.name, _names(state, (node,))[0]) for r, node in job.roles() if r not in bound]
        return reasons.Starting(len(job.endpoints), len(job.roles()), tuple(awaited))
    if job.state == RUNNING:
        return kind.running(job)
    assert job.state == QUEUED
    return reasons.Waiting(kind.wanted_nodes(job), ready)


def _full(job: AnyJob, state: ClusterState, alive: Set[NodeId]) -> reasons.NoRoom | None:
    """It waits, and not for nodes, but for what others have of them."""
    wanted = kind_of(job).views.lacks(job)
    if job.state in ENDED or not wanted or not job.spec.share:
        return None
    room = Room(state)
    able = [m for m in state.members.values() if m.node in alive and not m.witness and not m.draining]
    full = [member for member in able if not room.fits(job.spec, member.node)]
    if len(able) < wanted or len(able) - len(full) >= wanted:
        return None
    left = [(member.name, room.spare(member.node)) for member in sorted(full, key=lambda member: member.name)]
    spare = tuple((name, found.cpus, found.memory) for name, found in left)
    return reasons.NoRoom(wanted, job.spec.share.cpus, job.spec.share.memory, spare)


def _names(state: ClusterState, nodes: Iterable[NodeId]) -> tuple[str, ...]:
    return tuple(state.members[node].name if node in state.members else node for node in nodes)


def no_quorum(state: ClusterState | None, voters: Set[NodeId], is_alive: Callable[[NodeId], bool]) -> reasons.Reason:
    """Why nothing can be agreed on, where no coordinator is heard."""
    named = {m.node: m.name for m in state.members.values()} if state is not None else {}
    ordered = sorted(voters, key=lambda node: named.get(node, node))
    here = tuple(named.get(node, node) for node in ordered if is_alive(node))
    if len(here) * 2 > len(ordered):
        return reasons.NoCoordinator()
    return reasons.NoQuorum(here, tuple(named.get(node, node) for node in ordered if not is_alive(node)))


def role_views(state: ClusterState) -> list[RoleView]:
    """Every bound role process of the jobs that go on."""
    found = []
    for job in state.jobs.values():
        if job.state in ENDED:
            continue
        for record in job.endpoints:
            key = record.endpoint.key
            shards = kind_of(job).views.shards(job, key)
            found.append(RoleView(job.id, f"{key.role}-{key.index}", record.endpoint.node_name, record.pid, shards))
    return found


def member_views(
    state: ClusterState,
    voters: Set[NodeId],
    standing: Callable[[NodeId], str],
    facts: Callable[[NodeId], NodeFacts | None],
) -> tuple[MemberView, ...]:
    """Every member, by name."""
    roles = role_views(state)
    found, room = [], Room(state)
    for member in sorted(state.members.values(), key=lambda member: member.name):
        known, spare = facts(member.node), room.spare(member.node)
        found.append(
            MemberView(
                name=member.name,
                id=member.node,
                state=standing(member.node),
                address=member.address,
                voter=member.node in voters,
                roles=tuple(role for role in roles if role.node == member.name),
                pid=None if known is None else known[0],
                version=None if known is None else known[1],
                witness=member.witness,
                cpus=member.capacity.cpus,
                memory=member.capacity.memory,
                cpus_left=spare.cpus,
                memory_left=spare.memory,
                trouble=sentence(reasons.DiskFull(member.name, known[2])) if known and known[2] else None,
            )
        )
    return tuple(found)
