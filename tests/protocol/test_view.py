"""What a node says of the mesh."""

from msgspec import structs

from dmi_protocol.cluster.command import TrainingSpec
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey
from dmi_protocol.kinds.job import FAILED, RECOVERING, RUNNING, STARTING, EndpointRecord
from dmi_protocol.kinds.training.state import Checkpoint, KeptPart, TrainingJob
from dmi_protocol.messages.roles import Endpoint, Progressed, RoleKey
from dmi_protocol.reasons import (
    Cancelled,
    FilesAway,
    NodeLost,
    PartsAway,
    Recovering,
    Running,
    Starting,
    TakingOver,
    Waiting,
    Weakened,
)
from dmi_protocol.view import (
    job_view,
    member_views,
    role_views,
    why,
)
from tests.protocol.assignments import put

A, B = NodeId("a" * 16), NodeId("b" * 16)
BOTH = frozenset({A, B})


def state(job_state: str) -> tuple[ClusterState, TrainingJob]:
    """One job of two workers with a server each, all bound when it runs."""
    found = ClusterState("mesh")
    for node in (B, A):
        found.members[node] = MemberRecord(node, f"n-{node[0]}", "h:1", PublicKey(node), witness=False)
    job = TrainingJob(JobId("job-1"), TrainingSpec("job", "t.py", workers=2), BlobHash("b" * 64), (A,), 1, job_state)
    found.jobs[job.id] = job
    if job_state != "queued":
        put(job, (A, B), (A, B))
    if job_state == RUNNING:
        job.endpoints = tuple(endpoint(role, node, pid) for pid, (role, node) in enumerate(job.roles()))
    return found, job


def endpoint(role: RoleKey, node: NodeId, pid: int) -> EndpointRecord:
    return EndpointRecord(Endpoint(role, node, f"n-{node[0]}", "h:2", PublicKey("k")), pid)


def test_every_state_has_its_reason() -> None:
    found, job = state("queued")
    assert why(job, found, frozenset({A})) == Waiting(2, 1)
    found, job = state(STARTING)
    waited = tuple((f"{role}-{nth}", f"n-{'ab'[nth]}") for role in ("server", "worker") for nth in (0, 1))
    assert why(job, found, BOTH) == Starting(0, 4, waited)
    assert why(job, found, frozenset({B})) == FilesAway(("n-a",)), "they are on A alone"
    job.holders = (A, B)
    assert why(job, found, frozenset({B})) == Starting(0, 4, waited)
    found, job = state(RUNNING)
    assert why(job, found, BOTH) == Running(("n-a", "n-b"), ("n-a", "n-b"))
    job.state, job.reason = FAILED, Cancelled()
    assert why(job, found, BOTH) == Cancelled()


def test_a_job_that_recovers_says_what_was_lost_and_what_it_goes_on_from() -> None:
    found, job = state("queued")
    loss = NodeLost("worker-1", "n-b")
    job.state, job.reason = RECOVERING, loss
    assert why(job, found, BOTH) == Recovering(loss, None, 0, 0)
    shown = job_view(job, found, BOTH, Progressed(3, 9, 100.0, 0.5))
    assert (shown.step, shown.samples_per_second) == (3, None), "it does not move now"
    assert (
        shown.sentence == "n-b, which played worker-1, is gone; the job goes on from its beginning: waiting for nodes"
    )
    assert shown.reason == shown.sentence
    job.checkpoint = Checkpoint(40, (KeptPart(0, BlobHash("1" * 64), 1, (B,)),))
    assert why(job, found, frozenset({A})) == PartsAway(loss, 40, ("n-b",))
    put(job, (A,), (A,), 2)
    assert why(job, found, frozenset({A})) == PartsAway(loss, 40, ("n-b",)), (
        "it is placed, and waits for them all the same"
    )
    assert why(job, found, BOTH) == Recovering(loss, 40, 0, 2)
    assert (
        "from the checkpoint of step 40: 0 of 2 role processes are ready" in job_view(job, found, BOTH, None).sentence
    )


def test_a_job_whose_processes_go_on_says_what_it_lacks() -> None:
    found, job = state(RUNNING)
    job.runs, job.state, job.reason = True, RECOVERING, NodeLost("worker-1", "n-b")
    assert why(job, found, BOTH) == TakingOver(job.reason)
    job.state = RUNNING
    assert why(job, found, BOTH) == Weakened(job.reason, ("n-a", "n-b"), 2, 0), "copies are not in sync yet"
    job.endpoints = tuple(record for record in job.endpoints if record.endpoint.node == A)
    assert why(job, found, BOTH) == Weakened(job.reason, ("n-a",), 2, 2), "they were called, and are not bound yet"


def test_progress_counts_while_the_job_goes_on() -> None:
    found, job = state(RUNNING)
    told = Progressed(3, 9, 100.0, 0.5)
    shown = job_view(job, found, BOTH, told)
    assert (shown.step, shown.steps, shown.samples_per_second, shown.loss) == (3, 9, 100.0, 0.5)
    job.state, job.reason, job.step, job.loss = "succeeded", Cancelled(), 9, 0.25
    shown = job_view(job, found, BOTH, told)
    assert (shown.step, shown.steps, shown.samples_per_second, shown.loss) == (9, 9, None, 0.25)


def test_members_are_shown_by_name_with_their_processes() -> None:
    found, job = state(RUNNING)
    shown = member_views(found, {A}, {A: "alive", B: "dead"}.__getitem__, {A: (7, "1.0", "")}.get)
    assert [(m.name, m.state, m.voter, m.pid, m.version) for m in shown] == [
        ("n-a", "alive", True, 7, "1.0"),
        ("n-b", "dead", False, None, None),
    ]
    assert [m.witness for m in shown] == [False, False]
    found.members[B] = structs.replace(found.members[B], witness=True)
    assert [m.witness for m in member_views(found, BOTH, lambda _: "alive", lambda _: None)] == [False, True]
    assert [(role.role, role.pid, role.shards) for role in shown[1].roles] == [
        ("server-1", 1, ((1, True),)),
        ("worker-1", 3, ()),
    ]
    job.state = FAILED
    assert role_views(found) == []
