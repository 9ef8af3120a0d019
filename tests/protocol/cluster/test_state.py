"""The replicated state survives a snapshot, whole."""

from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import BindRole, Cancel, Command, Invite, KeepPart, Part, Submit, TrainingSpec
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId, job_id
from dmi_protocol.messages.roles import RoleKey
from tests.protocol.assignments import placing

A, B = NodeId("a" * 16), NodeId("b" * 16)
JOB = job_id("job", RequestId("s"))
HISTORY: tuple[Command, ...] = (
    Invite(RequestId("i"), PublicKey("i"), 9),
    Submit(RequestId("s"), TrainingSpec("job", "t.py", ("1",), 2), BlobHash("b" * 64), (A,)),
    Cancel(RequestId("unknown"), JobId("x")),
    placing(JOB, 1, (A, B), (A, B)),
    KeepPart(RequestId("k"), JOB, 1, 4, Part(1, BlobHash("1" * 64), 1, B), final=False),
    BindRole(RequestId("t"), RoleKey(JOB, 1, "server", 0), "h:2", PublicKey("k" * 40), 7),
    Cancel(RequestId("c"), JOB),
)


def begin() -> ClusterState:
    state = ClusterState("mesh")
    for node in (B, A):
        state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
    return state


def test_a_snapshot_at_any_point_leads_to_the_same_state() -> None:
    whole = begin()
    for index, command in enumerate(HISTORY):
        apply(whole, index, command)
    for cut in range(len(HISTORY)):
        state = begin()
        for index, command in enumerate(HISTORY):
            if index == cut:
                again = ClusterState.decode(state.encode())
                assert again == state
                assert again.encode() == state.encode()
                state = again
            apply(state, index, command)
        assert state.digest() == whole.digest()


def test_each_of_these_commands_shows_in_the_digest() -> None:
    state, seen = begin(), set()
    for index, command in enumerate(HISTORY):
        apply(state, index, command)
        seen.add(state.digest())
    assert len(seen) == len(HISTORY)
