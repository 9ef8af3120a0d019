"""Which nodes play which role of a job, from its beginning on."""

from collections.abc import Sequence

from msgspec import Struct

from dmi_protocol.cluster.command import TrainingSpec
from dmi_protocol.identity import NodeId


class Chosen(Struct, frozen=True):
    """The i-th node of a list holds the i-th role. The first ``shards`` servers are primaries, the others have room for
    backups only; the i-th keeper has copies of what the i-th primary writes to disk."""

    workers: tuple[NodeId, ...]
    servers: tuple[NodeId, ...]
    shards: int
    backups: int
    checkpoint_holders: tuple[NodeId, ...]


def wanted_nodes(spec: TrainingSpec) -> int:
    """How many nodes must be alive before the job can start."""
    return max(1, spec.workers or 0, spec.servers or 0)


def wanted_backups(spec: TrainingSpec) -> int:
    """How many backups each shard is to have, where there are nodes for them."""
    return 1 if spec.backups is None else spec.backups


def choose(
    spec: TrainingSpec, nodes: Sequence[NodeId], load: dict[NodeId, int], *, fewer: bool = False
) -> Chosen | None:
    """Place ``spec`` on ``nodes``, the least loaded first; None when there are too few of them.

    By default every node is a worker, and each worker's node holds shards: then a step moves about the bytes of a ring
    all-reduce. More servers than workers take the next nodes. With ``fewer`` a job makes do with the nodes that there
    are: the result has the same bits.
    """
    if len(nodes) < (1 if fewer else wanted_nodes(spec)):
        return None
    ordered = sorted(nodes, key=lambda node: (load.get(node, 0), node))
    workers = tuple(ordered[: spec.workers or len(ordered)])
    primaries = tuple(ordered[: spec.servers or len(workers)])
    servers = tuple(ordered[: max(len(primaries), wanted_backups(spec) + 1)])
    return Chosen(workers, servers, len(primaries), wanted_backups(spec), checkpoint_holders_of(primaries, ordered))


def checkpoint_holders_of(servers: Sequence[NodeId], nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """For each server the node that comes after it, around; nobody where a server has no other node."""
    if any(set(nodes) <= {server} for server in servers):
        return ()
    return tuple(_after(server, nodes) for server in servers)


def _after(server: NodeId, nodes: Sequence[NodeId]) -> NodeId:
    place = nodes.index(server) + 1 if server in nodes else 0
    return next(node for node in (*nodes[place:], *nodes) if node != server)
