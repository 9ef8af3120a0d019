"""What a node runs, and what it does about processes from before it was started again."""

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    BindRole,
    CompleteRole,
    DeploymentSpec,
    Finish,
    HoldBlob,
    KeepPart,
    LoseRole,
    Part,
    Placement,
    TrainingSpec,
)
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.effects import DropBlob, FetchBlob, StartRole, StopRole, TellRole
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey
from dmi_protocol.instant import Instant, after
from dmi_protocol.jobs.hosting import Hosting
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import CANCELLED, RUNNING, STARTING, SUCCEEDED, EndpointRecord
from dmi_protocol.kinds.kind import Host
from dmi_protocol.kinds.training.state import Checkpoint, KeptPart, TrainingJob
from dmi_protocol.messages.roles import (
    Bound,
    Completed,
    Endpoint,
    Exited,
    Failed,
    Follower,
    Followers,
    PartWritten,
    RoleKey,
    Versions,
)
from dmi_protocol.model import ModelContent, ModelFile, ModelRef
from dmi_protocol.reasons import NodeLost, RoleDied, RoleFailed, RoleUnready
from tests.protocol.assignments import put, training

ME = NodeId("a" * 16)
JOB = JobId("job-1")
NOW = Instant(1_000)
AGAIN = after(NOW, limits.FETCH_AGAIN_MS)
BUNDLE = BlobHash("b" * 64)
SERVER = RoleKey(JOB, 1, "server", 0)


def hosting_here() -> Hosting:
    return Hosting(Host(ME, "n0", "h", (0, 0)), lambda _: 7)


def placed() -> tuple[ClusterState, TrainingJob]:
    """A job with a server here and a worker elsewhere."""
    state = ClusterState("mesh")
    for node in (ME, OTHER):
        state.members[node] = MemberRecord(node, f"n-{node[0]}", "h:1", PublicKey(node), witness=False)
    job = TrainingJob(JOB, TrainingSpec("job", "t.py"), BUNDLE, (ME,), 1, STARTING)
    put(job, (NodeId("c" * 16),), (ME,))
    state.jobs[JOB] = job
    return state, job


def endpoint(job: TrainingJob, key: str) -> None:
    job.endpoints = (EndpointRecord(Endpoint(SERVER, ME, "n0", "h:2", PublicKey(key)), 7),)


def test_a_role_is_fetched_started_bound_and_told() -> None:
    state, job = placed()
    hosting = hosting_here()
    assert hosting.reconcile(Instant(0), state) == ([FetchBlob(BUNDLE, ())], [])
    started, told = hosting.arrived(NOW, state, BUNDLE)
    assert [type(effect) for effect in started] == [StartRole]
    assert told == []
    (fact,) = hosting.happened(SERVER, Bound("h:2", PublicKey("now"), 7))
    assert isinstance(fact, BindRole)
    endpoint(job, "now")
    assert hosting.reconcile(Instant(0), state) == ([], [])
    job.state = RUNNING
    effects, facts = hosting.reconcile(Instant(0), state)
    assert [type(effect) for effect in effects] == [TellRole]
    assert facts == []


def test_an_endpoint_of_an_earlier_start_is_reported_lost() -> None:
    state, job = placed()
    endpoint(job, "before")
    effects, facts = hosting_here().reconcile(Instant(0), state)
    assert effects == []
    assert [fact.reason for fact in facts if isinstance(fact, LoseRole)] == [NodeLost("server-0", "n0")]


def test_an_endpoint_of_an_earlier_start_that_is_heard_of_late_is_reported_lost_too() -> None:
    """Simulation, seed 34: the restarted node had begun the role again before it caught up with the log."""
    state, job = placed()
    hosting = hosting_here()
    hosting.reconcile(Instant(0), state)
    hosting.arrived(NOW, state, BUNDLE)
    hosting.happened(SERVER, Bound("h:3", PublicKey("now"), 8))
    endpoint(job, "before")
    job.state = RUNNING
    effects, facts = hosting.reconcile(Instant(0), state)
    assert effects == [], "nobody must be told of a roster with a dead process in it"
    assert [fact.reason for fact in facts if isinstance(fact, LoseRole)] == [NodeLost("server-0", "n0")]


OTHER, NEW = NodeId("c" * 16), NodeId("d" * 16)
PARTS = tuple(BlobHash(f"{shard}" * 64) for shard in range(3))


def restored(servers: int) -> tuple[ClusterState, TrainingJob]:
    """A job that goes on from a checkpoint of three shards, with a server here and others elsewhere."""
    state, job = placed()
    state.members[OTHER] = MemberRecord(OTHER, "n1", "h:1", PublicKey("o"), witness=False)
    put(job, (OTHER,), (ME, OTHER, OTHER)[:servers])
    job.checkpoint = Checkpoint(4, tuple(KeptPart(shard, blob, 1, (OTHER, ME)) for shard, blob in enumerate(PARTS)))
    job.restore = 4
    return state, job


def test_a_server_goes_on_from_the_parts_that_hold_its_buckets_once_all_are_here() -> None:
    for servers, parts in ((3, PARTS[:1]), (2, PARTS)):
        state, _ = restored(servers)
        hosting = hosting_here()
        effects, _ = hosting.reconcile(Instant(0), state)
        assert effects == [FetchBlob(BUNDLE, ()), *(FetchBlob(part, (OTHER,)) for part in parts)]
        for blob in parts:
            assert hosting.arrived(NOW, state, blob) == ([], [])
        ((start,), _) = hosting.arrived(NOW, state, BUNDLE)
        assert isinstance(start, StartRole)
        assert start.launch.needs == parts


def test_what_cannot_be_had_now_is_asked_for_again_for_as_long_as_it_takes() -> None:
    """Whoever has it may be away; it must cost the job nothing, and certainly not its life."""
    for blob, sources in ((PARTS[0], (OTHER,)), (BUNDLE, ())):
        state, job = restored(3)
        hosting = hosting_here()
        hosting.reconcile(Instant(0), state)
        hosting.missing(NOW, blob)
        assert hosting.reconcile(Instant(0), state) == ([], []), "not faster than now and then"
        assert hosting.deadline() == AGAIN
        assert hosting.tick(NOW, state) == ([], [])
        assert hosting.tick(AGAIN, state) == ([FetchBlob(blob, sources)], [])
        assert hosting.deadline() is None
        job.holders, job.checkpoint = (NEW,), Checkpoint(4, (KeptPart(0, PARTS[0], 1, (NEW,)),))
        state.members[NEW] = MemberRecord(NEW, "n2", "h:1", PublicKey("n"), witness=False)
        hosting.missing(NOW, blob)
        assert hosting.tick(AGAIN, state) == ([FetchBlob(blob, (NEW,))], []), "of whoever has it now"


def test_fetching_is_no_starting_and_a_process_that_does_not_bind_is_given_up() -> None:
    """A child that hangs before its first beat is found by this, too."""
    state, _ = placed()
    hosting = hosting_here()
    hosting.reconcile(Instant(0), state)
    assert hosting.deadline() is None, "however long its files take"
    hosting.arrived(NOW, state, BUNDLE)
    due = after(NOW, limits.ROLE_START_MS)
    assert hosting.deadline() == due
    assert hosting.tick(Instant(due - 1), state) == ([], [])
    effects, (fact,) = hosting.tick(due, state)
    assert [type(effect) for effect in effects] == [StopRole]
    assert isinstance(fact, LoseRole)
    assert fact.reason == RoleUnready("server-0", "n0", limits.ROLE_START_MS)
    assert hosting.happened(SERVER, Exited(0, 15)) == [], "it is told once"
    assert hosting.deadline() is None


def test_a_process_that_is_bound_is_ready() -> None:
    hosting = started()
    hosting.happened(SERVER, Bound("h:2", PublicKey("now"), 7))
    assert hosting.deadline() is None


def test_a_checkpoint_holder_fetches_a_part_tells_it_and_drops_it_when_it_is_old() -> None:
    state, job = placed()
    put(job, (OTHER,), (OTHER,))
    job.checkpoint_holders = (ME,)
    job.parts[4] = (KeptPart(0, PARTS[0], 9, (OTHER,)),)
    state.members[OTHER] = MemberRecord(OTHER, "n1", "h:1", PublicKey("o"), witness=False)
    hosting = hosting_here()
    assert hosting.reconcile(Instant(0), state) == ([FetchBlob(PARTS[0], (OTHER,))], [])
    assert hosting.reconcile(Instant(0), state) == ([], []), "it is under way"
    hosting.missing(NOW, PARTS[0])
    assert hosting.tick(AGAIN, state) == ([FetchBlob(PARTS[0], (OTHER,))], []), "it is tried again"
    hosting.drop_kept(state)
    (_, (fact,)) = hosting.arrived(NOW, state, PARTS[0])
    assert isinstance(fact, KeepPart)
    assert (fact.step, fact.part, fact.final) == (4, Part(0, PARTS[0], 9, ME), False)
    job.parts[4] = (KeptPart(0, PARTS[0], 9, (OTHER, ME)),)
    assert hosting.reconcile(Instant(0), state) == ([], [])
    assert hosting.drop_kept(state) == []
    job.parts.clear()
    assert hosting.drop_kept(state) == [DropBlob(PARTS[0])]


def started() -> Hosting:
    state, _ = placed()
    hosting = hosting_here()
    hosting.reconcile(Instant(0), state)
    hosting.arrived(NOW, state, BUNDLE)
    return hosting


def test_what_lies_in_the_job_is_final_and_what_lies_in_a_process_is_made_good() -> None:
    (died,) = started().happened(SERVER, Exited(-9, 9))
    assert isinstance(died, LoseRole)
    assert died.reason == RoleDied("server-0", "n0", -9, 9, stalled=False)
    (silent,) = started().happened(SERVER, Failed("peer-silent", "worker-1 was not heard"))
    assert isinstance(silent, LoseRole)
    hosting = started()
    (raised,) = hosting.happened(SERVER, Failed("script-raised", "ValueError"))
    assert isinstance(raised, Finish)
    assert raised.reason == RoleFailed("server-0", "n0", "script-raised", "ValueError")
    assert hosting.happened(SERVER, Exited(1, 0)) == [], "it has said why"


def test_a_process_that_ends_before_it_is_stopped_is_a_loss_though_its_work_was_done() -> None:
    """A last word of a server may be lost, and a server with its final part: somebody must say it, or ask for it, again."""
    hosting = started()
    assert [type(fact) for fact in hosting.happened(SERVER, Completed())] == [CompleteRole]
    (lost,) = hosting.happened(SERVER, Exited(0, 9))
    assert isinstance(lost, LoseRole)


def test_a_part_that_a_server_has_written_is_told_under_its_own_node() -> None:
    (fact,) = started().happened(SERVER, PartWritten(4, 0, PARTS[0], "/part", 9, final=True))
    assert isinstance(fact, KeepPart)
    assert (fact.part, fact.final) == (Part(0, PARTS[0], 9, ME), True)


def test_a_part_that_was_written_stays_until_the_state_speaks_of_it() -> None:
    """Simulation: this host was to keep a copy of the very same bytes, for a placement that is over."""
    state, _ = placed()
    hosting = started()
    hosting.happened(SERVER, PartWritten(4, 0, PARTS[0], "/part", 9, final=True))
    hosting._keeping._kept = frozenset({PARTS[0]})
    assert hosting.drop_kept(state) == []
    training(state, JOB).final_parts[4] = (KeptPart(0, PARTS[0], 9, (ME,)),)
    assert hosting.drop_kept(state) == []
    training(state, JOB).final_parts.clear()
    assert hosting.drop_kept(state) == [DropBlob(PARTS[0])]


def test_a_completed_role_whose_process_is_of_an_earlier_start_is_safe_only_with_its_final_part() -> None:
    state, job = placed()
    endpoint(job, "before")
    job.state, job.completed = RUNNING, (SERVER,)
    _, facts = hosting_here().reconcile(Instant(0), state)
    assert [type(fact) for fact in facts] == [LoseRole]
    job.final_parts[4] = (KeptPart(0, PARTS[0], 9, (ME,)),)
    _, facts = hosting_here().reconcile(Instant(0), state)
    assert [type(fact) for fact in facts] == [LoseRole], "the worker may wait for its last words (simulation, seed 242)"
    job.completed = (SERVER, RoleKey(JOB, 1, "worker", 0))
    assert hosting_here().reconcile(Instant(0), state) == ([], [])


def test_the_last_checkpoint_and_the_final_one_may_be_the_same_bytes() -> None:
    """The copy of the second was never told, because the first was under way: the job did not end."""
    state, job = placed()
    put(job, (OTHER,), (OTHER,))
    job.checkpoint_holders = (ME,)
    job.parts[4] = (KeptPart(0, PARTS[0], 9, (OTHER,)),)
    hosting = hosting_here()
    hosting.reconcile(Instant(0), state)
    hosting.arrived(NOW, state, PARTS[0])
    job.final_parts[4] = (KeptPart(0, PARTS[0], 9, (OTHER,)),)
    assert hosting.reconcile(Instant(0), state) == ([FetchBlob(PARTS[0], (OTHER,))], [])
    (_, facts) = hosting.arrived(NOW, state, PARTS[0])
    assert [fact.final for fact in facts if isinstance(fact, KeepPart)] == [False, True]


def test_a_copy_that_was_told_while_another_was_to_keep_it_is_told_anew() -> None:
    """The first telling was stale, and answered once and for all: the final part never came, and the job never ended."""
    state, job = placed()
    put(job, (OTHER,), (OTHER,))
    job.checkpoint_holders = (ME,)
    job.final_parts[4] = (KeptPart(0, PARTS[0], 9, (OTHER,)),)
    hosting = hosting_here()
    hosting.reconcile(Instant(0), state)
    (_, (before,)) = hosting.arrived(NOW, state, PARTS[0])
    job.holder_changes += 2  # to another and back, in one batch of entries
    assert hosting.reconcile(Instant(0), state) == ([FetchBlob(PARTS[0], (OTHER,))], [])
    (_, (now,)) = hosting.arrived(NOW, state, PARTS[0])
    assert isinstance(before, KeepPart)
    assert isinstance(now, KeepPart)
    assert before.request != now.request
    assert before.part == now.part


def test_a_further_copy_of_an_ended_job_is_fetched_told_and_kept() -> None:
    state, job = restored(3)
    job.state, job.copies = SUCCEEDED, {PARTS[1]: ME, BUNDLE: ME}
    job.checkpoint = Checkpoint(4, (KeptPart(1, PARTS[1], 1, (OTHER,)),))
    job.holders = (OTHER,)
    hosting = hosting_here()
    assert hosting.reconcile(Instant(0), state) == ([FetchBlob(PARTS[1], (OTHER,)), FetchBlob(BUNDLE, (OTHER,))], [])
    for blob in (PARTS[1], BUNDLE):
        (_, (fact,)) = hosting.arrived(NOW, state, blob)
        assert isinstance(fact, HoldBlob)
        assert (fact.blob, fact.node) == (blob, ME)
    assert hosting.drop_kept(state) == []


def test_what_is_about_to_be_spoken_of_stays_for_a_while() -> None:
    """A model is added again while it is removed: its file must not go between the look whether it is here and the word that
    it is."""
    state, _ = placed()
    hosting = hosting_here()
    hosting.pin(Instant(5), PARTS[0])
    assert hosting.drop_kept(state) == []
    due = hosting.deadline()
    assert due == Instant(5 + limits.PIN_MS)
    effects, _ = hosting.tick(due, state)
    assert effects == [DropBlob(PARTS[0])]
    assert hosting.deadline() is None


def test_a_further_copy_that_is_decided_on_begins_no_other_one_anew() -> None:
    state, job = placed()
    job.state, job.holders, job.copies, job.asked = SUCCEEDED, (OTHER,), {PARTS[0]: ME}, {PARTS[0]: 1}
    hosting = hosting_here()
    assert hosting.reconcile(NOW, state) == ([FetchBlob(PARTS[0], ())], [])
    job.copies, job.asked = {PARTS[0]: ME, PARTS[1]: ME}, {PARTS[0]: 1, PARTS[1]: 1}
    assert hosting.reconcile(NOW, state) == ([FetchBlob(PARTS[1], ())], [])
    assert hosting.reconcile(NOW, state) == ([], [])
    (first,) = hosting.arrived(NOW, state, PARTS[0])[1]
    job.asked = {PARTS[0]: 2, PARTS[1]: 1}  # it was kept, lost, and is to be here again
    assert hosting.reconcile(NOW, state) == ([FetchBlob(PARTS[0], ())], [])
    assert hosting.arrived(NOW, state, PARTS[0])[1][0].request != first.request


def test_a_worker_is_told_who_follows_by_checkpoints_once_their_code_is_here() -> None:
    state, job = placed()
    put(job, (ME,), (OTHER,))
    worker, code, weights = RoleKey(JOB, 1, "worker", 0), BlobHash("1" * 64), BlobHash("2" * 64)
    made = ModelContent("factory", (ModelFile("code", code, 1), ModelFile("weights", weights, 1)), factory="net:make")
    hosting = hosting_here()
    hosting.reconcile(NOW, state)
    hosting.arrived(NOW, state, BUNDLE)
    hosting.happened(worker, Bound("h:2", PublicKey("now"), 7))
    job.endpoints = (EndpointRecord(Endpoint(worker, ME, "n0", "h:2", PublicKey("now")), 7),)
    spec = DeploymentSpec("m", ModelRef("m:1", made), follow=JOB, every=2)
    placement = Placement(RoleKey(JobId("m-1"), 1, "replica", 0), OTHER)
    served = DeploymentJob(
        id=JobId("m-1"),
        spec=spec,
        bundle=BlobHash(""),
        holders=(),
        submitted_at=2,
        state=RUNNING,
        placements=(placement,),
        versions=Versions(spec.model),
    )
    state.jobs[served.id] = served
    assert hosting.reconcile(NOW, state)[0] == [FetchBlob(code, ())], "its weights are not needed"
    ((told,), _) = hosting.arrived(NOW, state, code)
    follower = Follower("m", 2, replace(made, files=made.files[:1]))
    assert told == TellRole(worker, Followers((follower,)))
    assert hosting.reconcile(NOW, state)[0] == [], "it is told once"
    served.state = CANCELLED
    assert hosting.reconcile(NOW, state)[0] == [TellRole(worker, Followers(()))]
