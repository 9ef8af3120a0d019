"""Where a deployment's processes are put, and what becomes of a loss."""

import pytest
from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.command import (
    Cancel,
    DeploymentSpec,
    Dismiss,
    Place,
    PublishVersion,
    Recruit,
    RefuseVersion,
    RemoveModel,
    SetVersions,
    Submit,
    TrainingSpec,
)
from dmi_protocol.cluster.models import ModelVersion
from dmi_protocol.cluster.state import Outcome
from dmi_protocol.identity import BlobHash, JobId, RequestId
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.job import CANCELLED, FAILED, RECOVERING, RUNNING, STARTING
from dmi_protocol.messages.roles import RoleKey, Unusable, Versions
from dmi_protocol.model import ModelRef
from dmi_protocol.reasons import AlreadyServed, CrashedOften, Malformed, ModelInUse, RoleFailed, Stale, UnknownModel
from dmi_protocol.sentences import sentence
from dmi_protocol.view import why
from tests.protocol.kinds.deployment.table import NO_FILES, A, B, C, D, Table
from tests.protocol.models import adding, content, deployment


def begun(replicas: int | None = None, gateways: int | None = None, nodes: str = "abc") -> Table:
    table = Table(
        deployment(replicas=replicas, gateways=gateways), [{"a": A, "b": B, "c": C, "d": D}[n] for n in nodes]
    )
    table.settle()
    return table


def test_by_default_two_replicas_and_a_gateway_on_every_node() -> None:
    table = begun()
    assert (len(table.where("replica")), table.where("gateway")) == (2, ["a", "b", "c"])
    assert (table.job.state, table.propose()) == (RUNNING, [])
    assert begun(nodes="a").where("replica") == ["a"]


@pytest.mark.parametrize(("replicas", "most"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_replicas_are_spread_evenly(replicas: int, most: int) -> None:
    counts = begun(replicas).count("replica")
    assert (counts.total(), max(counts.values())) == (replicas, most)


def test_it_runs_with_the_first_replica_and_the_first_gateway() -> None:
    table = Table(deployment(replicas=2))
    (place,) = table.propose()
    assert isinstance(place, Place)
    table.do(place)
    assert table.job.state == STARTING
    table.bind()
    assert table.job.state == RUNNING


def test_a_process_that_is_lost_is_replaced_and_the_others_go_on() -> None:
    table = begun(2)
    before = table.job.changes
    table.lose(table.job.placed("replica")[0][0])
    assert table.job.state == RUNNING
    assert "go on" in sentence(why(table.job, table.state, table.nodes))
    (recruit,) = table.settle()
    assert isinstance(recruit, Recruit)
    assert len(table.where("replica")) == 2
    assert table.job.changes >= before + 2, "all are told of the loss, and of who came"
    assert (table.job.state, table.job.reason) == (RUNNING, None)


def test_the_last_replica_lost_is_a_recovery() -> None:
    table = begun(1, 1, "ab")
    table.lose(table.job.placed("replica")[0][0])
    assert table.job.state == RECOVERING
    assert "requests wait" in sentence(why(table.job, table.state, table.nodes))
    table.settle()
    assert table.job.state == RUNNING


def test_all_processes_lost_and_it_comes_back() -> None:
    table = begun(2, 2, "ab")
    for role, _ in table.job.roles():
        table.lose(role)
    assert (table.job.state, table.job.placements) == (RECOVERING, ())
    table.settle()
    assert (table.job.state, table.where("replica"), table.where("gateway")) == (RUNNING, ["a", "b"], ["a", "b"])


def test_a_node_that_is_gone_is_done_without_and_used_again() -> None:
    table = begun(3)
    table.nodes.remove(C)
    table.settle()
    assert (table.count("replica"), table.where("gateway")) == ({"a": 2, "b": 1}, ["a", "b"])
    table.join(C)
    moved = table.settle()
    assert (table.where("replica"), table.where("gateway")) == (["a", "b", "c"], ["a", "b", "c"])
    assert any(isinstance(command, Dismiss) for command in moved)


def test_who_comes_to_a_node_that_is_back_is_waited_for() -> None:
    table = begun(4, nodes="abcd")
    table.nodes.remove(D)
    table.settle()
    table.join(D)
    table.settle(bind=False)
    assert len(table.settle(bind=False)) == 0
    assert table.where("replica").count("d") == 1, "it is on its way"
    table.bind()
    table.settle()
    assert table.where("replica") == ["a", "b", "c", "d"]


def test_a_node_that_leaves_serves_until_others_do() -> None:
    table = begun(2, 2, "abc")
    (leaving, _) = sorted({node for _, node in table.job.placed("replica")})
    table.drain(leaving)
    table.settle(bind=False)
    assert leaving[0] in table.where("replica"), "nobody else is bound yet"
    table.bind()
    table.settle()
    assert leaving[0] not in table.where("replica") + table.where("gateway")
    assert table.job.state == RUNNING


def test_where_every_node_leaves_nobody_goes() -> None:
    table = begun(2, 2, "ab")
    table.drain(A)
    table.drain(B)
    assert table.settle() == []


def test_crashes_of_processes_that_have_served_never_end_it() -> None:
    table = begun(1)
    for _ in range(3 * limits.CRASHES):
        table.lose(table.job.placed("replica")[0][0])
        table.settle()
    assert table.job.state == RUNNING


def test_a_model_that_ends_every_process_before_it_serves_is_given_up() -> None:
    table = Table(deployment(replicas=1, gateways=1), [A])
    for _ in range(limits.CRASHES * (limits.MISSES + 1)):
        table.settle(bind=False)
        if table.job.placed("replica"):
            table.lose(table.job.placed("replica")[0][0])
    assert table.job.state == FAILED


def test_a_taken_port_is_that_hosts_fault() -> None:
    table = Table(deployment(replicas=1))
    table.settle(bind=False)
    for _ in range(limits.MISSES):
        key = table.key("gateway", C)
        table.lose(key, RoleFailed(key.name, "c", "port", "port 8100 is taken"))
        table.settle(bind=False)
    table.bind()
    table.settle()
    assert (table.job.state, table.where("gateway")) == (RUNNING, ["a", "b"])


def test_a_port_that_is_taken_everywhere_ends_it() -> None:
    table = Table(deployment(replicas=1), [A, B])
    for _ in range(20):
        table.settle(bind=False)
        for key, node in table.job.placed("gateway"):
            table.lose(key, RoleFailed(key.name, node[0], "port", "port 8100 is taken"))
    assert table.job.state == FAILED
    assert "8100" in sentence(table.job.reason) if table.job.reason else False
    assert not isinstance(table.job.reason, CrashedOften)


def test_a_name_is_served_once() -> None:
    table = begun()
    again = table.do(Submit(RequestId("again"), deployment(), NO_FILES, ()))
    assert again.refusal == AlreadyServed("m", table.id)
    table.do(Cancel(RequestId("end"), table.id))
    assert table.job.state == CANCELLED
    assert table.do(Submit(RequestId("anew"), deployment(), NO_FILES, ())).refusal is None


def test_what_no_deployment_can_be_is_refused() -> None:
    table = begun()
    assert table.do(Submit(RequestId("x"), deployment("x", model="x:1"), NO_FILES, ())).refusal == UnknownModel("x:1")
    for odd in (deployment("x", replicas=0), deployment("x", gateways=-1), deployment("x", max_batch=0)):
        assert table.do(Submit(RequestId(str(odd)), odd, NO_FILES, ())).refusal == Malformed("deployment", "x")
    files = Submit(RequestId("files"), deployment("x"), BlobHash("f" * 64), (A,))
    assert table.do(files).refusal == Malformed("deployment", "x")


def test_the_model_of_a_deployment_stays() -> None:
    table = begun()
    assert table.do(RemoveModel(RequestId("rm"), "m", 1)).refusal == ModelInUse("m:1", table.id)


# Versions


def versions(table: Table, current: int, canary: int | None = None, share: int = 0, *, pinned: bool = False) -> Outcome:
    refs = [ModelRef(f"m:{n}", content()) for n in (current, canary) if n is not None]
    told = Versions(refs[0], refs[1] if canary is not None else None, share)
    return table.do(SetVersions(RequestId(f"set-{table.job.changes}-{current}-{canary}"), table.id, told, pinned))


def with_versions(count: int = 3) -> Table:
    table = begun(2)
    for number in range(2, count + 1):
        table.state.models["m"][number] = replace_version(table.state.models["m"][1], number)
    return table


def replace_version(version: ModelVersion, number: int) -> ModelVersion:
    return ModelVersion("m", number, version.content, f"digest-{number}", 1, dict(version.nodes))


def test_another_version_is_told_to_all() -> None:
    table = with_versions()
    before = table.job.changes
    assert versions(table, 2).refusal is None
    assert (table.job.versions.current.id, table.job.history[0].id) == ("m:2", "m:1")
    assert table.job.changes == before + 1
    assert versions(table, 2).refusal is None
    assert (table.job.changes, len(table.job.history)) == (before + 1, 1), "it is what it was"
    assert versions(table, 9).refusal == UnknownModel("m:9")


def test_a_canary_has_a_share() -> None:
    table = with_versions()
    versions(table, 1, 2, 10)
    assert table.job.models() == ("m:1", "m:2")
    assert table.do(RemoveModel(RequestId("rm"), "m", 2)).refusal == ModelInUse("m:2", table.id)
    assert versions(table, 1, 1, 10).refusal == Stale()
    assert versions(table, 1, 2, 101).refusal == Stale()


def test_a_version_that_cannot_be_loaded_is_gone_back_from() -> None:
    table = with_versions()
    versions(table, 2)
    role = table.job.placed("replica")[0][0]
    assert table.do(RefuseVersion(RequestId("no"), role, "m:2", "ModelError: damaged")).refusal is None
    assert (table.job.versions.current.id, table.job.unusable) == ("m:1", {"m:2": "ModelError: damaged"})
    assert "m:2 cannot be loaded (ModelError: damaged); m:1 is served" in sentence(
        why(table.job, table.state, table.nodes)
    )
    assert table.do(RefuseVersion(RequestId("again"), role, "m:2", "x")).refusal == Stale(), (
        "another replica says so, too"
    )
    versions(table, 3)
    assert table.job.reason is None


def test_what_was_refused_and_is_given_again_may_be_refused_again() -> None:
    table = with_versions()
    role = table.job.placed("replica")[0][0]
    for number in (1, 2):
        versions(table, 2)
        (command,) = kind_of(table.job).processes.says(role, Unusable("m:2", "damaged", number), A, None)
        table.do(command)
        assert table.job.versions.current.id == "m:1"


def test_a_canary_that_cannot_be_loaded_is_done_without() -> None:
    table = with_versions()
    versions(table, 1, 2, 10)
    role = table.job.placed("replica")[0][0]
    table.do(RefuseVersion(RequestId("no"), role, "m:2", "x"))
    assert table.job.versions == Versions(ModelRef("m:1", content()))


def test_the_first_version_has_nothing_before_it() -> None:
    table = with_versions()
    role = table.job.placed("replica")[0][0]
    assert table.do(RefuseVersion(RequestId("no"), role, "m:1", "x")).refusal == Stale()


# Following a training


def training(table: Table) -> JobId:
    """One that runs, with a worker on A."""
    spec = TrainingSpec("t", "t.py", workers=1, servers=1, backups=0)
    job = JobId(table.do(Submit(RequestId("train"), spec, BlobHash("f" * 64), (A, B))).value)
    for command in table.propose():
        if isinstance(command, Place):
            table.do(command)
    return job


def publish(table: Table, job: JobId, weights: str, name: str = "m") -> Outcome:
    role = next(role for role, _ in table.state.jobs[job].roles() if role.role == "worker")
    made = content(BlobHash(weights * 64))
    return table.do(PublishVersion(RequestId(f"publish-{weights}-{name}"), role, name, made, 1))


def follows(spec: DeploymentSpec, job: JobId) -> DeploymentSpec:
    return replace(spec, follow=job)


def test_each_version_that_is_published_is_taken() -> None:
    table = begun(2)
    job = training(table)
    table.do(Cancel(RequestId("end"), table.id))
    table.id = JobId(table.do(Submit(RequestId("again"), follows(deployment(), job), NO_FILES, ())).value)
    table.settle()
    assert table.job.versions.current.id == "m:1"
    assert publish(table, job, "1").value == "m:2"
    table.settle()
    assert table.job.versions.current.id == "m:2"
    table.do(adding("m", A, blob=BlobHash("9" * 64), request="another"))
    table.settle()
    assert table.job.versions.current.id == "m:2", "it was not the training that made it"
    versions(table, 1, pinned=True)
    publish(table, job, "3")
    table.settle()
    assert table.job.versions.current.id == "m:1", "it is pinned"
    versions(table, 1)
    table.settle()
    assert table.job.versions.current.id == "m:4"
    role = table.job.placed("replica")[0][0]
    table.do(RefuseVersion(RequestId("no"), role, "m:4", "x"))
    table.settle()
    assert table.job.versions.current.id == "m:2", "the newest that can be loaded"


def test_only_a_worker_of_the_training_publishes() -> None:
    table = begun(2)
    job = training(table)
    assert publish(table, job, "1").refusal is None
    assert publish(table, job, "1", name="a/b").refusal is not None
    table.do(Cancel(RequestId("end"), job))
    role = RoleKey(job, 1, "worker", 0)
    late = PublishVersion(RequestId("late"), role, "m", content(BlobHash("2" * 64)), 1)
    assert table.do(late).refusal == Stale()


def test_of_many_versions_the_last_stay_and_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VERSIONS_REMEMBERED", 3)
    table = begun(2)
    job = training(table)
    for weights in "23456789":
        publish(table, job, weights)
        if weights == "3":
            versions_to(table, 3)
    assert sorted(table.state.models["m"]) == [1, 3, 7, 8, 9], "the first is nobody's, and m:3 is served"


def versions_to(table: Table, number: int) -> None:
    ref = ModelRef(f"m:{number}", table.state.models["m"][number].content)
    assert table.do(SetVersions(RequestId(f"to-{number}"), table.id, Versions(ref))).refusal is None
