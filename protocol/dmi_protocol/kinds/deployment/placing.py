"""Where a deployment's processes are, and where they should be: pure."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from dmi_protocol import limits
from dmi_protocol.identity import NodeId
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.messages.roles import Role, RoleKey
from dmi_protocol.placement.room import Room

_REPLICAS = 2
"""Where nobody says how many: one may be lost."""


class Part(NamedTuple):
    """What there are so many processes of: gateways, or replicas of one stage."""

    role: Role
    stage: int = 0


def parts(job: DeploymentJob) -> list[Part]:
    """All that it is made of."""
    return [Part("gateway"), *(Part("replica", stage) for stage in range(job.stages))]


def fit(job: DeploymentJob, nodes: Sequence[NodeId]) -> list[NodeId]:
    """Those where its processes were of use, if there are any."""
    return [node for node in nodes if job.misses.get(node, 0) < limits.MISSES] or list(nodes)


def target(job: DeploymentJob, role: Role, nodes: Sequence[NodeId]) -> int:
    """How many of this role there should be on these nodes: one gateway on a node at most, because of its port."""
    if role == "gateway":
        return min(job.spec.gateways or limits.GATEWAYS, len(nodes))
    if job.spec.most is not None:
        return job.scale if nodes else 0
    return (job.spec.replicas or min(_REPLICAS, len(nodes))) if nodes else 0


def replicas_on(job: DeploymentJob) -> "Counter[NodeId]":
    """How many each node has, of all stages."""
    return Counter(node for _, node in job.placed("replica"))


def missing(
    job: DeploymentJob, part: Part, nodes: Sequence[NodeId], room: Room, replicas: "Counter[NodeId]"
) -> list[NodeId]:
    """On which nodes one more is wanted; what is chosen is taken of ``room``, and added to ``replicas``. Where all are there and
    some node has two replicas more than another one that has room, that other one gets one, so that the first can give one up."""
    able = fit(job, nodes)
    is_computing = part.role == "replica"
    roomy = [node for node in able if room.fits(job.spec, node)] if is_computing else able
    placed = job.placed(part.role, part.stage)
    there = Counter(node for _, node in placed if node in nodes)
    lacking = target(job, part.role, able) - there.total()
    if lacking <= 0 and is_computing and roomy:
        bound = {endpoint.key for endpoint in job.bound("replica")}
        is_settled = lacking == 0 and all(key in bound for key, _ in placed)
        emptiest = min(replicas[node] for node in roomy)
        lacking = int(is_settled and any(replicas[node] - emptiest > 1 for _, node in placed))
    chosen: list[NodeId] = []
    for _ in range(lacking):
        open_ = [node for node in roomy if (room.fits(job.spec, node) if is_computing else not there[node])]
        if not open_:
            break
        node = min(open_, key=lambda node: (there[node], replicas[node], room.roles.get(node, 0), node))
        chosen.append(node)
        there[node] += 1
        room.roles[node] = room.roles.get(node, 0) + 1
        if is_computing:
            replicas[node] += 1
            room.take(job.spec, node)
    return chosen


def surplus(job: DeploymentJob, part: Part, nodes: Sequence[NodeId]) -> list[RoleKey]:
    """Who is not needed any more: those on nodes that are leaving, and those beyond the number that is wanted, once all others
    are bound. While nobody else is there, who is leaving stays."""
    bound = {endpoint.key for endpoint in job.bound(part.role)}
    placed = job.placed(part.role, part.stage)
    staying = [(key, node) for key, node in placed if node in nodes]
    leaving = [key for key, node in placed if node not in nodes]
    wanted = target(job, part.role, fit(job, nodes))
    if part.role == "replica" and job.is_asleep:
        return [key for key, _ in placed]
    ready = [(key, node) for key, node in staying if key in bound]
    if not wanted or len(ready) < wanted:
        return [key for key in leaving if key not in bound]
    there, replicas = Counter(node for _, node in ready), replicas_on(job)
    gone = leaving
    for _ in range(len(ready) - wanted):  # who is not bound yet came for a reason, and is waited for
        key, node = max(ready, key=lambda each: (there[each[1]], replicas[each[1]], each[0].index))
        ready.remove((key, node))
        there[node] -= 1
        gone.append(key)
    return gone
