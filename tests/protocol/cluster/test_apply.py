"""What commands do to the state."""

from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import Finish, JobSpec, Place, Remove, Submit
from dmi_protocol.cluster.state import FAILED, STARTING, ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.reasons import Cancelled, Stale

A, B = NodeId("a" * 16), NodeId("b" * 16)


def submitted() -> tuple[ClusterState, JobId]:
    state = ClusterState("mesh")
    for node in (A, B):
        state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
    outcome = apply(state, 1, Submit(RequestId("s"), JobSpec("job", "t.py"), BlobHash("b" * 64), (A,)))
    return state, JobId(outcome.value)


def place(job: JobId, generation: int, *nodes: NodeId) -> Place:
    return Place(RequestId(f"{job}/{generation}/place"), job, generation, nodes, nodes)


def test_a_placement_on_a_node_that_was_just_removed_counts_so_that_it_can_be_made_again() -> None:
    """Simulation, seed 32: it was refused under the request id of that generation, and the job waited for ever."""
    state, job = submitted()
    apply(state, 2, Remove(RequestId("r"), B))
    apply(state, 3, place(job, 1, A, B))
    assert (state.jobs[job].state, state.jobs[job].generation) == (STARTING, 1)
    apply(state, 4, place(job, 2, A))
    assert (state.jobs[job].generation, state.jobs[job].workers) == (2, (A,))


def test_what_a_stale_generation_says_changes_nothing() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B))
    apply(state, 3, place(job, 2, A))
    outcome = apply(state, 4, Finish(RequestId("f"), job, 1, FAILED, Cancelled()))
    assert outcome.refusal == Stale()
    assert state.jobs[job].state == STARTING
