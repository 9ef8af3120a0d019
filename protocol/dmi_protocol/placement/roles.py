"""Which nodes play which role of a job."""

from collections.abc import Sequence

from msgspec import Struct

from dmi_protocol.cluster.command import JobSpec
from dmi_protocol.identity import NodeId


class Chosen(Struct, frozen=True):
    """The i-th node of a list holds the i-th role."""

    workers: tuple[NodeId, ...]
    servers: tuple[NodeId, ...]


def wanted_nodes(spec: JobSpec) -> int:
    """How many nodes must be alive before the job can start."""
    return max(1, spec.workers or 0, spec.servers or 0)


def choose(spec: JobSpec, nodes: Sequence[NodeId], load: dict[NodeId, int]) -> Chosen | None:
    """Place ``spec`` on ``nodes``, the least loaded first; None when there are too few of them.

    By default every node is a worker, and each worker's node holds shards: then a step moves about the bytes of a ring
    all-reduce. More servers than workers take the next nodes.
    """
    if len(nodes) < wanted_nodes(spec):
        return None
    ordered = sorted(nodes, key=lambda node: (load.get(node, 0), node))
    workers = spec.workers or len(ordered)
    servers = spec.servers or workers
    return Chosen(tuple(ordered[:workers]), tuple(ordered[:servers]))
