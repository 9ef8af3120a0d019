"""A state that came as a snapshot is acted upon like any other."""

from random import Random

from dmi_protocol import effects as do
from dmi_protocol import events as on
from dmi_protocol.cluster.command import TrainingSpec
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.instant import Instant
from dmi_protocol.kinds.job import STARTING
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.consensus import Install
from dmi_protocol.messages.control import Introduced
from dmi_protocol.peer import Peer, PeerSettings, found
from tests.protocol.assignments import put
from tests.protocol.little import me


def test_roles_are_started_though_no_entry_was_ever_seen() -> None:
    """Simulation, seed 101: the placement was in a snapshot, and its roles were never started."""
    leader, here = me("n0"), me("n1")
    snapshot = found(leader, "mesh").snapshot
    assert snapshot is not None
    state = ClusterState.decode(snapshot.state)
    nodes = (here.node,)
    bundle = BlobHash("b" * 64)
    state.jobs[JobId("j")] = job = TrainingJob(JobId("j"), TrainingSpec("j", "t.py"), bundle, nodes, 1, STARTING)
    put(job, nodes, nodes)
    data = state.encode()
    known = [Introduced(leader.node, leader.name, leader.address, leader.public_key)]
    peer = Peer(here, PeerSettings(), Random(1), Restored(), known)
    peer.step(Instant(0), on.Ticked())
    voters: tuple[NodeId, ...] = (leader.node,)
    piece = Install(1, 1, 1, voters, 0, len(data), data)
    effects = peer.step(Instant(5), on.Received(leader.node, piece))
    assert [effect.blob for effect in effects if isinstance(effect, do.FetchBlob)] == [bundle, bundle]
