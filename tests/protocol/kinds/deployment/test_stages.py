"""Deployments whose model is cut into stages: who has which, who speaks with whom, and what becomes of a loss."""

from msgspec.structs import replace

from dmi_protocol.cluster.command import Command, DeploymentSpec, SetVersions
from dmi_protocol.identity import BlobHash, NodeId, RequestId
from dmi_protocol.kinds.all_kinds import kind_of
from dmi_protocol.kinds.job import RECOVERING, RUNNING
from dmi_protocol.kinds.kind import Host
from dmi_protocol.messages.roles import Fleet, ReplicaLaunch, RoleKey, Versions
from dmi_protocol.model import ModelFile, ModelRef
from dmi_protocol.reasons import ModelLost, Stale, UnknownModel
from tests.protocol.kinds.deployment.table import A, B, C, D, Table
from tests.protocol.models import adding, content, cutting, deployment

OTHER = BlobHash("d" * 64)


def staged(stages: int = 3, replicas: int = 1, nodes: tuple[NodeId, ...] = (A, B, C)) -> Table:
    made = cutting(stages, A, B)
    model = ModelRef("m:1", replace(content(), stages=made.stages))
    spec: DeploymentSpec = replace(deployment(replicas=replicas), model=model)
    return Table(spec, nodes, [made])


def begun(stages: int = 3, replicas: int = 1, nodes: tuple[NodeId, ...] = (A, B, C)) -> Table:
    table = staged(stages, replicas, nodes)
    table.settle()
    return table


def where(table: Table, stage: int) -> list[str]:
    return sorted(node[0] for _, node in table.job.placed("replica", stage))


def of_stage(table: Table, stage: int) -> RoleKey:
    return table.job.placed("replica", stage)[0][0]


def told(table: Table, role: RoleKey) -> Fleet:
    found = kind_of(table.job).processes.told(table.job, role, 0, has_inputs=True)
    assert found is not None
    assert isinstance(found[1], Fleet)
    return found[1]


def test_each_stage_has_a_node_of_its_own_where_there_are_enough() -> None:
    table = begun()
    assert sorted(where(table, 0) + where(table, 1) + where(table, 2)) == ["a", "b", "c"]
    assert (table.job.state, table.propose()) == (RUNNING, [])
    wide = begun(2, replicas=2, nodes=(A, B, C, D))
    assert max(wide.count("replica").values()) == 1
    assert begun(3, nodes=(A,)).count("replica") == {"a": 3}


def test_it_serves_once_each_stage_is_there() -> None:
    table = staged()
    for command in table.propose():
        table.do(command)
    before = table.job.serves
    table.bind()
    assert (before, table.job.serves) == (False, True)
    table.lose(of_stage(table, 1))
    assert (table.job.serves, table.job.state) == (False, RECOVERING)
    table.settle()
    assert (table.job.serves, table.job.state) == (True, RUNNING)
    assert len(where(table, 1)) == 1, "that stage is replaced, and no other"


def test_a_process_needs_the_files_of_its_stage_and_speaks_with_its_neighbours() -> None:
    table = begun()
    processes = kind_of(table.job).processes
    stages = table.job.spec.model.content.stages
    gateways = {endpoint.key for endpoint in table.job.bound("gateway")}
    for stage in range(3):
        role = of_stage(table, stage)
        needs = processes.needs(table.job, role)
        assert needs == tuple(file.blob for file in stages[stage].files)
        launch = processes.launch(table.job, role, Host(A, "a", "h", (1, 2)), needs)
        assert isinstance(launch, ReplicaLaunch)
        assert launch.stage == stage
        fleet = told(table, role)
        assert fleet.stage == stage
        before = {of_stage(table, stage - 1)} if stage else gateways
        assert {endpoint.key for endpoint in fleet.gateways} == before
        assert {endpoint.key for endpoint in fleet.replicas} == ({of_stage(table, stage + 1)} if stage < 2 else set())
    fleet = told(table, table.job.placed("gateway")[0][0])
    assert {endpoint.key for endpoint in fleet.replicas} == {of_stage(table, 0)}


def test_a_node_that_comes_back_takes_a_stage_of_one_that_has_two() -> None:
    table = begun()
    gone = table.job.placed("replica", 1)[0][1]
    table.nodes.discard(gone)
    table.settle()
    assert sorted(table.count("replica").values()) == [1, 2]
    table.join(gone)
    table.settle()
    assert sorted(table.count("replica").values()) == [1, 1, 1]


def versions(table: Table, current: ModelRef, name: str) -> object:
    return table.do(SetVersions(RequestId(name), table.id, Versions(current))).refusal


def test_another_version_must_be_cut_into_as_many_stages() -> None:
    table = begun()
    other, made = adding("m", A, blob=OTHER, request="other"), cutting(2, A, version="m:2", blob=OTHER)
    more: list[Command] = [other, made, cutting(3, A, version="m:2", blob=OTHER)]
    for command in more:
        assert table.do(command).refusal is None
    whole = content(OTHER)
    assert versions(table, ModelRef("m:2", whole), "whole") == Stale()
    assert versions(table, ModelRef("m:2", replace(whole, stages=made.stages)), "two") == Stale()
    third = cutting(3, A, version="m:2", blob=OTHER).stages
    assert versions(table, ModelRef("m:2", replace(whole, stages=third)), "three") is None
    inputs = kind_of(table.job).processes.inputs(table.job, of_stage(table, 2))
    assert inputs == tuple(file.blob for file in third[2].files)


def test_what_is_used_is_not_exchanged_for_another_cut_of_it() -> None:
    table = begun()
    before, another = table.job.versions.current, cutting(3, A, most=5)
    assert table.do(another).refusal is None
    assert table.state.models["m"][1].cuts[3] == another.stages
    anew = ModelRef("m:1", replace(content(), stages=another.stages))
    files = replace(another.stages[0], files=(ModelFile("weights", OTHER, 1),))
    strange = ModelRef("m:1", replace(content(), stages=(files, *another.stages[1:])))
    assert versions(table, anew, "anew") == Stale(), "one stage of each would be no model"
    assert versions(table, strange, "strange") == UnknownModel("m:1")
    assert versions(table, before, "as it was") is None
    assert table.job.versions.current == before


def test_it_is_hopeless_only_without_the_files_of_a_stage_that_nobody_has_in_memory() -> None:
    table = begun()
    plans = kind_of(table.job).plans
    version = table.state.models["m"][1]
    blob = table.job.spec.model.content.stages[1].files[1].blob
    version.nodes[blob] = ()
    assert plans.hopeless(table.job, table.state) is None
    table.lose(of_stage(table, 1))
    assert plans.hopeless(table.job, table.state) == ModelLost("m:1")
