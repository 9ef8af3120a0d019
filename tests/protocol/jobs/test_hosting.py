"""What a node runs, and what it does about processes of its own earlier life."""

from dmi_protocol.cluster.command import Finish, JobSpec, SeatRole
from dmi_protocol.cluster.state import RUNNING, STARTING, ClusterState, Job, MemberRecord, SeatRecord
from dmi_protocol.effects import FetchBlob, StartRole, TellRole
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey
from dmi_protocol.jobs.hosting import Hosting
from dmi_protocol.messages.roles import Bound, RoleKey, Seat
from dmi_protocol.reasons import NodeLost

ME = NodeId("a" * 16)
JOB = JobId("job-1")
BUNDLE = BlobHash("b" * 64)
SERVER = RoleKey(JOB, 1, "server", 0)


def placed() -> tuple[ClusterState, Job]:
    """A job with a server here and a worker elsewhere."""
    state = ClusterState("mesh")
    state.members[ME] = MemberRecord(ME, "n0", "h:1", PublicKey("k"), witness=False)
    job = Job(JOB, JobSpec("job", "t.py"), BUNDLE, (ME,), 1, STARTING, 1, (NodeId("c" * 16),), (ME,))
    state.jobs[JOB] = job
    return state, job


def seat(job: Job, key: str) -> None:
    job.seats = (SeatRecord(Seat(SERVER, ME, "n0", "h:2", PublicKey(key)), 7),)


def test_a_role_is_fetched_started_seated_and_told() -> None:
    state, job = placed()
    hosting = Hosting(ME, "n0", "h", (0, 0))
    assert hosting.reconcile(state) == ([FetchBlob(BUNDLE, ())], [])
    assert [type(effect) for effect in hosting.arrived(state, BUNDLE)] == [StartRole]
    (fact,) = hosting.happened(SERVER, Bound("h:2", PublicKey("now"), 7))
    assert isinstance(fact, SeatRole)
    seat(job, "now")
    assert hosting.reconcile(state) == ([], [])
    job.state = RUNNING
    effects, facts = hosting.reconcile(state)
    assert [type(effect) for effect in effects] == [TellRole]
    assert facts == []


def test_a_seat_of_an_earlier_life_is_reported_lost() -> None:
    state, job = placed()
    seat(job, "before")
    effects, facts = Hosting(ME, "n0", "h", (0, 0)).reconcile(state)
    assert effects == []
    assert [fact.reason for fact in facts if isinstance(fact, Finish)] == [NodeLost("server-0", "n0")]


def test_a_seat_of_an_earlier_life_that_is_heard_of_late_is_reported_lost_too() -> None:
    """Simulation, seed 34: the restarted node had begun the role again before it caught up with the log."""
    state, job = placed()
    hosting = Hosting(ME, "n0", "h", (0, 0))
    hosting.reconcile(state)
    hosting.arrived(state, BUNDLE)
    hosting.happened(SERVER, Bound("h:3", PublicKey("now"), 8))
    seat(job, "before")
    job.state = RUNNING
    effects, facts = hosting.reconcile(state)
    assert effects == [], "nobody must be told of a roster with a dead process in it"
    assert [fact.reason for fact in facts if isinstance(fact, Finish)] == [NodeLost("server-0", "n0")]
