"""What commands do to the state."""

from itertools import count

import pytest
from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import (
    AddToken,
    Admit,
    BindRole,
    Cancel,
    Finish,
    KeepPart,
    LoseRole,
    Part,
    Place,
    Readdress,
    Remove,
    RemoveToken,
    SetCheckpointHolders,
    Submit,
    TrainingSpec,
)
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId, job_id, node_id
from dmi_protocol.kinds.job import CANCELLED, FAILED, RECOVERING, RUNNING, STARTING
from dmi_protocol.messages.roles import Role, RoleKey
from dmi_protocol.reasons import (
    Cancelled,
    CrashedOften,
    InvitationExpired,
    InvitationUsed,
    JobEnded,
    LimitReached,
    Malformed,
    NameTaken,
    RoleDied,
    RoleFailed,
    Stale,
    UnknownMember,
    UnknownToken,
)
from tests.protocol.assignments import placing, training, workers

A, B = NodeId("a" * 16), NodeId("b" * 16)


def submitted() -> tuple[ClusterState, JobId]:
    state = ClusterState("mesh")
    for node in (A, B):
        state.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
    outcome = apply(state, 1, Submit(RequestId("s"), TrainingSpec("job", "t.py"), BlobHash("b" * 64), (A,)))
    return state, JobId(outcome.value)


def place(job: JobId, generation: int, *nodes: NodeId) -> Place:
    return placing(job, generation, nodes, nodes)


def lose(job: JobId, generation: int, role: Role, index: int, step: int | None = None) -> LoseRole:
    key = RoleKey(job, generation, role, index)
    reason = RoleDied(f"{role}-{index}", "n", -9, 9, stalled=False)
    return LoseRole(RequestId(f"{job}/{generation}/{role}-{index}/lost"), key, reason, step)


def test_a_placement_on_a_node_that_was_just_removed_counts_so_that_it_can_be_made_again() -> None:
    """Simulation, seed 32: it was refused under the request id of that generation, and the job waited for ever."""
    state, job = submitted()
    apply(state, 2, Remove(RequestId("r"), B))
    apply(state, 3, place(job, 1, A, B))
    assert (training(state, job).state, training(state, job).generation) == (STARTING, 1)
    apply(state, 4, lose(job, 1, "worker", 1))
    apply(state, 5, place(job, 2, A))
    assert (training(state, job).generation, workers(training(state, job).placements)) == (2, (A,))


def test_what_a_stale_generation_says_changes_nothing() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B))
    apply(state, 3, lose(job, 1, "worker", 0))
    apply(state, 4, place(job, 2, A))
    outcome = apply(state, 5, Finish(RequestId("f"), job, 1, FAILED, Cancelled()))
    assert outcome.refusal == Stale()
    assert apply(state, 6, lose(job, 1, "worker", 1)).refusal == Stale()
    other = replace(place(job, 2, A, B), request=RequestId("other"))
    assert apply(state, 7, other).refusal == Stale()
    assert training(state, job).state == STARTING


def admit(request: str, key: str, name: str = "c", at_unix: int = 50, who: str = "c" * 40) -> Admit:
    return Admit(RequestId(request), PublicKey(key), at_unix, name, "h:1", PublicKey(who), witness=False)


def invited(*keys: str) -> ClusterState:
    state, _ = submitted()
    state.invitations = {PublicKey(key): 100 for key in keys}
    return state


def test_an_invitation_is_redeemed_once() -> None:
    state = invited("i")
    outcome = apply(state, 2, admit("one", "i"))
    assert outcome.value == node_id(PublicKey("c" * 40))
    assert apply(state, 3, admit("one", "i")) == outcome, "asking again gives the old answer"
    assert apply(state, 4, admit("two", "i", "d", who="d" * 40)).refusal == InvitationUsed()
    assert len(state.members) == 3


def test_an_invitation_expires_by_the_clock_of_who_was_asked() -> None:
    state = invited("i", "j")
    assert apply(state, 2, admit("one", "i", at_unix=101)).refusal == InvitationExpired()
    assert apply(state, 3, admit("two", "i", at_unix=99)).refusal == InvitationUsed(), "it is gone"
    assert apply(state, 4, admit("three", "j", at_unix=100)).refusal is None


def test_a_name_is_one_member_s_and_a_refusal_leaves_the_invitation() -> None:
    state = invited("i")
    assert apply(state, 2, admit("one", "i", name="a")).refusal == NameTaken("a")
    long = "n" * (limits.NAME_CHARACTERS + 1)
    assert isinstance(apply(state, 3, admit("two", "i", name=long)).refusal, LimitReached)
    assert apply(state, 4, admit("three", "i", name="c")).refusal is None


def test_a_node_that_is_invited_again_keeps_its_name() -> None:
    """It lost the answer to its first invitation and has a new one."""
    state = invited("i", "j")
    apply(state, 2, admit("one", "i"))
    assert apply(state, 3, admit("two", "j")).refusal is None
    assert len(state.members) == 3


def test_who_is_removed_is_unknown_from_then_on() -> None:
    state, _ = submitted()
    assert apply(state, 2, Remove(RequestId("one"), B)).refusal is None
    assert apply(state, 3, Remove(RequestId("two"), B)).refusal == UnknownMember(B)


def test_a_submission_that_is_repeated_when_its_outcome_is_forgotten_submits_once() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B))
    state.requests.clear()
    again = apply(state, 3, Submit(RequestId("s"), TrainingSpec("job", "t.py"), BlobHash("b" * 64), (A,)))
    assert (again.value, again.refusal) == (job, None)
    assert training(state, job).state == STARTING


def test_another_job_whose_id_would_be_the_same_overwrites_nothing() -> None:
    state, _ = submitted()
    first: dict[JobId, RequestId] = {}
    for number in count():
        request = RequestId(f"r{number}")
        other = first.setdefault(job_id("job", request), request)
        if other != request:
            break
    apply(state, 2, Submit(other, TrainingSpec("job", "one.py"), BlobHash("1" * 64), (A,)))
    outcome = apply(state, 3, Submit(request, TrainingSpec("job", "two.py"), BlobHash("2" * 64), (A,)))
    assert outcome.refusal == NameTaken(job_id("job", request))
    assert training(state, job_id("job", request)).spec.script == "one.py"


def endpoint(job: JobId, role: Role, index: int) -> BindRole:
    return BindRole(RequestId(f"{role}-{index}"), RoleKey(job, 1, role, index), "h:9", PublicKey("k" * 40), 7)


def test_a_job_runs_when_every_role_is_bound() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A))
    apply(state, 3, endpoint(job, "server", 0))
    apply(state, 4, endpoint(job, "worker", 5))
    assert training(state, job).state == STARTING, "nobody was placed in the second of these endpoints"
    apply(state, 5, endpoint(job, "worker", 0))
    assert training(state, job).state == RUNNING


def test_a_job_is_cancelled_once() -> None:
    state, job = submitted()
    assert apply(state, 2, Cancel(RequestId("c"), job)).refusal is None
    assert apply(state, 3, Cancel(RequestId("d"), job)).refusal == JobEnded(job, CANCELLED)


def test_a_job_ends_in_a_state_that_is_an_end() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A))
    assert apply(state, 3, Finish(RequestId("f"), job, 1, RUNNING, Cancelled())).refusal == Stale()
    assert training(state, job).reason is None


def keep(job: JobId, step: int, shard: int, node: NodeId | None = None, *, final: bool = False) -> KeepPart:
    """Without ``node`` from the server's own."""
    part = Part(shard, BlobHash("1" * 64), 1, node or (A, B)[shard % 2])
    return KeepPart(RequestId(f"{step}/{shard}/{node}"), job, 1, step, part, final)


def test_a_checkpoint_is_whole_when_every_shard_has_its_part() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B))
    apply(state, 3, keep(job, 4, 0))
    assert apply(state, 4, keep(job, 4, 2)).refusal == Stale(), "there are two shards"
    assert apply(state, 5, keep(job, 4, -1)).refusal == Stale()
    assert training(state, job).checkpoint is None
    apply(state, 6, keep(job, 4, 1))
    checkpoint = training(state, job).checkpoint
    assert checkpoint is not None
    assert (checkpoint.step, [part.shard for part in checkpoint.parts]) == (4, [0, 1])


def with_checkpoint_holders(job: JobId) -> Place:
    return placing(job, 1, (A, B), (A, B), (B, A), request="kept")


def test_with_checkpoint_holders_a_checkpoint_is_whole_when_every_part_is_on_two_disks() -> None:
    state, job = submitted()
    apply(state, 2, with_checkpoint_holders(job))
    for index, command in enumerate([keep(job, 4, 0), keep(job, 4, 1), keep(job, 4, 0, B)]):
        apply(state, 3 + index, command)
        assert training(state, job).checkpoint is None
    apply(state, 6, keep(job, 4, 1, A))
    checkpoint = training(state, job).checkpoint
    assert checkpoint is not None
    assert [part.nodes for part in checkpoint.parts] == [(A, B), (B, A)]


def test_a_copy_of_a_part_that_its_server_has_not_told_counts_for_nothing() -> None:
    state, job = submitted()
    apply(state, 2, with_checkpoint_holders(job))
    assert apply(state, 3, keep(job, 4, 0, B)).refusal == Stale()
    assert training(state, job).parts == {}


def test_without_checkpoint_holders_what_is_on_one_disk_is_whole_at_once() -> None:
    state, job = submitted()
    apply(state, 2, with_checkpoint_holders(job))
    for shard in (0, 1):
        apply(state, 3 + shard, keep(job, 4, shard, final=True))
    apply(state, 5, SetCheckpointHolders(RequestId("alone"), job, 1, ()))
    assert training(state, job).final
    assert training(state, job).holder_changes == 1
    assert apply(state, 6, SetCheckpointHolders(RequestId("stale"), job, 2, (B, A))).refusal == Stale()


def run(state: ClusterState, job: JobId, generation: int) -> None:
    """All roles of a placement are bound."""
    for role, _ in training(state, job).roles():
        request = RequestId(f"{generation}/{role.role}-{role.index}")
        apply(state, 50, BindRole(request, role, "h:9", PublicKey("k" * 40), 7))


def test_a_job_that_ran_and_lost_a_role_recovers_from_its_checkpoint() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B))
    run(state, job, 1)
    for shard in (0, 1):
        apply(state, 60, keep(job, 4, shard))
    apply(state, 61, lose(job, 1, "server", 1, step=7))
    found = training(state, job)
    assert (found.state, found.is_placed, found.endpoints, found.parts) == (RECOVERING, False, (), {})
    begun = replace(place(job, 2, A), request=RequestId("from its beginning"))
    assert apply(state, 62, begun).refusal == Stale(), "the checkpoint must not be forgotten"
    apply(state, 63, placing(job, 2, (A,), (A,), restore=4))
    assert (found.state, found.generation, found.restore) == (RECOVERING, 2, 4)
    run(state, job, 2)
    assert (found.state, found.reason) == (RUNNING, None)


def test_a_job_that_crashes_again_and_again_is_given_up_unless_it_gets_further() -> None:
    state, job = submitted()
    for generation in range(1, 20):
        apply(state, 2, place(job, generation, A))
        apply(state, 3, lose(job, generation, "worker", 0, step=max(0, generation - 3)))
        if training(state, job).state == FAILED:
            break
        if generation == 10:
            assert training(state, job).crashes == 1, "it got further each time"
    assert training(state, job).state == "queued"
    state, job = submitted()
    for generation in range(1, limits.CRASHES + 1):
        assert training(state, job).state == "queued"
        apply(state, 2, place(job, generation, A))
        apply(state, 3, lose(job, generation, "worker", 0, step=3))
    assert training(state, job).state == FAILED
    assert training(state, job).reason == CrashedOften(5, RoleDied("worker-0", "n", -9, 9, stalled=False))


@pytest.mark.parametrize(("code", "signal", "most"), [(0, 0, 3), (1, 0, 3), (0, 11, 3), (0, 9, 5), (0, 15, 5)])
def test_who_ends_by_itself_is_given_up_sooner_than_who_is_killed(code: int, signal: int, most: int) -> None:
    state, job = submitted()
    for generation in range(1, most + 1):
        assert training(state, job).state == "queued"
        apply(state, 2, place(job, generation, A))
        reason = RoleDied("worker-0", "n", code, signal, stalled=False)
        apply(state, 3, replace(lose(job, generation, "worker", 0, step=3), reason=reason))
    assert training(state, job).state == FAILED


@pytest.mark.parametrize("kind", ["peer-silent", "peer-broken", "disk"])
def test_an_outage_is_no_crash(kind: str) -> None:
    """Of the network, or of a disk: however long it lasts, the code would not do it again."""
    state, job = submitted()
    for generation in range(1, limits.CRASHES + 5):
        apply(state, 2, place(job, generation, A))
        reason = RoleFailed("worker-0", "n", kind, "server-1 was not heard")
        assert apply(state, 3, replace(lose(job, generation, "worker", 0), reason=reason)).refusal is None
    assert (training(state, job).state, training(state, job).crashes) == ("queued", 0)
    assert training(state, job).misses == ({A: limits.CRASHES + 4} if kind == "disk" else {})


def test_what_falls_together_is_one_crash_and_a_late_report_resets_nothing() -> None:
    """`kill -9` of five workers at once counted five crashes, and ended the job."""
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B, A))
    run(state, job, 1)
    for nth, step in enumerate((7, 9, 7)):
        apply(state, 60 + nth, lose(job, 1, "worker", nth, step=step))
    found = training(state, job)
    assert (found.state, found.crashes, found.reached) == (RECOVERING, 1, 7)
    for generation in range(2, limits.CRASHES + 1):
        apply(state, 70, place(job, generation, A))
        apply(state, 71, lose(job, generation, "worker", 0, step=7))
        assert found.crashes == generation
    assert found.state == FAILED


def test_checkpoints_that_lack_a_part_are_bounded() -> None:
    state, job = submitted()
    apply(state, 2, place(job, 1, A, B))
    for step in range(limits.PARTIAL_CHECKPOINTS + 5):
        apply(state, 3 + step, keep(job, step, 0))
    assert sorted(training(state, job).parts) == list(range(5, limits.PARTIAL_CHECKPOINTS + 5))


def test_outcomes_are_remembered_up_to_a_bound() -> None:
    state, job = submitted()
    for number in range(limits.REQUESTS_REMEMBERED + 5):
        apply(state, 2 + number, Cancel(RequestId(f"c{number}"), JobId("x")))
    assert len(state.requests) == limits.REQUESTS_REMEMBERED
    assert RequestId("s") not in state.requests
    assert job in state.jobs


def test_ended_jobs_make_room_and_others_do_not() -> None:
    state, first = submitted()
    for number in range(1, limits.JOBS_REMEMBERED):
        apply(
            state, number, Submit(RequestId(f"s{number}"), TrainingSpec(f"j{number}", "t.py"), BlobHash("b" * 64), (A,))
        )
    more = Submit(RequestId("more"), TrainingSpec("more", "t.py"), BlobHash("b" * 64), (A,))
    assert isinstance(apply(state, 2_000, more).refusal, LimitReached)
    apply(state, 2_001, Cancel(RequestId("c"), first))
    again = Submit(RequestId("again"), TrainingSpec("more", "t.py"), BlobHash("b" * 64), (A,))
    assert apply(state, 2_002, again).refusal is None
    assert first not in state.jobs
    assert len(state.jobs) == limits.JOBS_REMEMBERED


@pytest.mark.parametrize(
    "changes",
    [{"address": "nonsense"}, {"public_key": "é" * 40}, {"public_key": "c"}, {"name": "two\nlines"}, {"name": ""}],
    ids=str,
)
def test_a_joiner_that_nobody_could_dial_is_not_let_in(changes: dict[str, str]) -> None:
    """Every node would try to link to it, and fail at that again after each restart."""
    state = invited("i")
    outcome = apply(state, 2, replace(admit("one", "i"), **changes))
    assert isinstance(outcome.refusal, Malformed)
    assert len(state.members) == 2
    assert apply(state, 3, admit("two", "i")).refusal is None, "the invitation is still good"


def test_a_member_moves_to_what_can_be_dialled_only() -> None:
    state, _ = submitted()
    assert apply(state, 2, Readdress(RequestId("r"), A, "h:2")).refusal is None
    assert isinstance(apply(state, 3, Readdress(RequestId("t"), A, "h")).refusal, Malformed)
    assert state.members[A].address == "h:2"


def test_a_token_is_known_by_its_digest_until_it_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    state, digest = ClusterState("mesh"), "d" * 64
    assert apply(state, 1, AddToken(RequestId("1"), "site", digest, "infer", 5)).refusal is None
    assert apply(state, 2, AddToken(RequestId("2"), "site", digest, "infer", 6)).refusal is None, "asked twice"
    assert apply(state, 3, AddToken(RequestId("3"), "site", "e" * 64, "infer", 6)).refusal == NameTaken("site")
    assert apply(state, 4, AddToken(RequestId("4"), "", digest, "infer", 6)).refusal == Malformed("name", "")
    assert apply(state, 5, AddToken(RequestId("5"), "x", "no", "infer", 6)).refusal == Malformed("SHA-256", "no")
    monkeypatch.setattr(limits, "TOKENS", 1)
    assert isinstance(apply(state, 6, AddToken(RequestId("6"), "x", digest, "infer", 6)).refusal, LimitReached)
    assert ClusterState.decode(state.encode()).tokens == state.tokens
    assert apply(state, 7, RemoveToken(RequestId("7"), "site")).refusal is None
    assert apply(state, 8, RemoveToken(RequestId("8"), "site")).refusal == UnknownToken("site")
