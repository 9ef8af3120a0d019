"""Who was at what when a machine failed, and what is left alone from then on."""

import random

import pytest

from dmi_protocol.blame import APPLYING, HOSTING, PLANNING, SetAside, at, digest_of, subject_of
from dmi_protocol.cluster.command import Cancel, Finish, LoseRole, TrainingSpec
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.events import Received, Ticked
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.jobs.hosting import CANNOT_START_HERE, Hosting
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.job import FAILED, QUEUED, STARTING
from dmi_protocol.kinds.kind import Host
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.messages.membership import Ping
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.peer import Me, Peer, PeerSettings, found
from dmi_protocol.reasons import GivenUp, RoleFailed
from dmi_protocol.sentences import sentence
from tests.protocol.assignments import put

ME, OTHER = NodeId("a" * 16), NodeId("b" * 16)
JOB = JobId("job-1")
NOW = Instant(1_000)


def mesh(job_state: str) -> ClusterState:
    state = ClusterState("mesh")
    for node in (ME, OTHER):
        state.members[node] = MemberRecord(node, f"n-{node[0]}", "h:1", PublicKey(node), witness=False)
    job = TrainingJob(JOB, TrainingSpec("job", "t.py", leaves=8), BlobHash("b" * 64), (ME,), 1, job_state)
    state.jobs[JOB] = job
    if job_state != QUEUED:
        put(job, (OTHER,), (ME,))
    return state


def test_the_innermost_is_to_blame_and_short_memory_is_nobody_s_fault() -> None:
    with pytest.raises(KeyError) as caught, at(APPLYING, "1/7"), at(HOSTING, "job-1"):
        raise KeyError("x")
    assert subject_of(caught.value) == "hosting job-1"
    with pytest.raises(MemoryError) as short, at(HOSTING, "job-1"):
        raise MemoryError
    assert subject_of(short.value) is None
    assert subject_of(ValueError()) is None


def test_an_event_that_may_come_again_is_known_again() -> None:
    ping = Received(OTHER, Ping(1))
    assert digest_of(ping) == digest_of(Received(OTHER, Ping(1)))
    assert digest_of(ping) != digest_of(Received(OTHER, Ping(2)))
    assert digest_of(Ticked()) is None, "leaving it out would stop the clock"


def test_a_job_that_ended_the_daemon_twice_is_lost_here_and_may_run_elsewhere() -> None:
    state = mesh(STARTING)
    role = RoleKey(JOB, 1, "server", 0)
    hosting = Hosting(Host(ME, "n0", "h", (0, 0)), lambda _: None, SetAside({"hosting job-1": "TypeError: odd"}))
    effects, facts = hosting.reconcile(NOW, state)
    assert effects == []
    (lost,) = facts
    assert isinstance(lost, LoseRole)
    assert lost.role == role
    assert isinstance(lost.reason, RoleFailed)
    assert lost.reason.kind == CANNOT_START_HERE
    assert sentence(lost.reason).endswith("TypeError: odd")


def test_a_job_whose_planning_ended_the_coordinator_twice_is_given_up() -> None:
    state = mesh(QUEUED)
    scheduler = Scheduler("n0", SetAside({f"{PLANNING} job-1": "ValueError: odd"}))
    command = scheduler.propose(NOW, state, frozenset({ME, OTHER}))[0]
    assert isinstance(command, Finish)
    assert (command.state, command.reason) == (FAILED, GivenUp("n0", "ValueError: odd"))
    assert "n0" in sentence(command.reason)
    assert "ValueError: odd" in sentence(command.reason)


def test_planning_and_hosting_say_which_job_they_were_at(monkeypatch: pytest.MonkeyPatch) -> None:
    state = mesh(QUEUED)
    state.jobs[JOB].misses = None  # type: ignore[assignment]
    with pytest.raises(AttributeError) as planning:
        Scheduler().propose(NOW, state, frozenset({ME, OTHER}))
    assert subject_of(planning.value) == "planning job-1"
    state = mesh(STARTING)
    monkeypatch.setattr(Hosting, "_want", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as hosting:
        Hosting(Host(ME, "n0", "h", (0, 0)), lambda _: None).reconcile(NOW, state)
    assert subject_of(hosting.value) == "hosting job-1"


def alone(restored: Restored, set_aside: SetAside | None = None) -> Peer:
    me = Me(ME, "n0", "h:1", PublicKey("k"))
    return Peer(me, PeerSettings(), random.Random(1), restored, (), set_aside)


def lead(peer: Peer) -> Instant:
    """Time passes until it leads, and its first entry is applied."""
    now = NOW
    while not peer.raft.is_ready:
        peer.step(now, Ticked())
        now = peer.deadline() or now
    return now


def test_an_entry_that_cannot_be_applied_changes_nothing_and_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    restored = found(Me(ME, "n0", "h:1", PublicKey("k")), "mesh")
    first = alone(restored)
    now = lead(first)
    monkeypatch.setattr("dmi_protocol.cluster.apply.do_for_job", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        first._propose_here(now, Cancel(RequestId("odd"), JOB), [])
    subject = subject_of(caught.value)
    entries = first.raft.log.between(first.raft.log.start + 1, first.raft.log.last)
    assert subject == f"{APPLYING} {entries[-1].term}/{entries[-1].index}"
    again = alone(
        Restored(entries[-1].term, ME, restored.snapshot, tuple(entries)), SetAside({subject: "ZeroDivisionError"})
    )
    lead(again)
    assert again.state is not None
    assert again.state.applied >= entries[-1].index
    assert again.state.requests[RequestId("odd")].refusal is not None
