"""Who should have a copy of what must not be lost: pure, from the state."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from dmi_protocol.cluster.holding import Holding
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.identity import BlobHash, NodeId

COPIES = 2


def recopies(
    state: ClusterState, fit: Sequence[NodeId], there: Set[NodeId], gone: Set[NodeId], load: Mapping[NodeId, int]
) -> Iterator[tuple[Holding, BlobHash, NodeId]]:
    """The copies that are to be made: of each blob with too few holders who stay, on a node that is ``fit``.

    Members that are ``gone`` are dead for long. Only what a node that is ``there`` has can be copied.
    """
    ordered = sorted(fit, key=lambda node: (load.get(node, 0), node))
    for owner in state.holdings():
        for blob, nodes in owner.blobs().items():
            stay = _staying(state, nodes, gone)
            able = [node for node in ordered if node not in nodes]
            is_asked = owner.copies.get(blob) in able
            if len(stay) < COPIES and able and not is_asked and set(nodes) & there:
                yield owner, blob, able[0]


def only_here(state: ClusterState, node: NodeId) -> tuple[BlobHash, ...]:
    """What would have too few copies if ``node`` left, though there are other nodes for them."""
    others = sum(not m.draining and not m.witness for m in state.members.values() if m.node != node)
    return tuple(
        blob
        for owner in state.holdings()
        for blob, nodes in owner.blobs().items()
        if node in nodes and len(_staying(state, nodes, {node})) < min(COPIES, others)
    )


def _staying(state: ClusterState, nodes: Collection[NodeId], gone: Set[NodeId]) -> list[NodeId]:
    return [n for n in nodes if n in state.members and not state.members[n].draining and n not in gone]
