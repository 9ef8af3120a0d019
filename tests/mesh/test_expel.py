"""One command takes a node out of the mesh: its vote, its key, its roles; and its daemon says so and ends for good."""

import json
from collections.abc import Callable
from functools import partial

import psutil
import pytest

import dmi
from dmi.mesh import Mesh
from dmi_node.cli.node import CANNOT_START
from dmi_protocol.reasons import IsYourself, UnknownMember, WasExpelled, WasTurnedAway
from dmi_protocol.sentences import sentence
from tests.mesh.local import ROOT, LocalMesh, command, job, submit, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

MakeMesh = Callable[[int], LocalMesh]
DIGITS = ROOT / "examples" / "digits.py"


def goes_on(mesh: LocalMesh, identity: str) -> bool:
    return (job(mesh, identity)["step"] or 0) > 2


def goes_on_without(mesh: LocalMesh, identity: str, gone: str) -> bool:
    seen = job(mesh, identity)
    roles = [role for role in dmi.connect(mesh.node(0)).roles() if role["job"] == identity]
    return seen["state"] == "running" and bool(roles) and all(role["node"] != gone for role in roles)


def names(node: Mesh) -> list[str]:
    return [member["name"] for member in node.members()]


def said(mesh: LocalMesh, index: int) -> str:
    return (mesh.node(index) / "daemon.log").read_text()


def runs_no_more(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def start_again(mesh: LocalMesh, index: int) -> tuple[int, str]:
    """The node's own daemon, in the foreground: its exit code and its last word."""
    done = command("run", "--home", mesh.node(index), home=mesh.node(index), seconds=60, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.deep
def test_a_node_that_is_expelled_ends_and_its_jobs_go_on(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(3)
    node = dmi.connect(mesh.node(0))
    until(lambda: sum(member["voter"] for member in node.members()) == 3, 15, "three voters")
    identity = submit(mesh, DIGITS, "--", "--epochs", "1000")
    until(partial(goes_on, mesh, identity), 90, "the job moves")
    family = [psutil.Process(mesh.pid(2)), *psutil.Process(mesh.pid(2)).children(recursive=True)]
    assert len(family) >= 3

    done = command("expel", "n2", "--json", home=mesh.node(1))
    assert json.loads(done.stdout).keys() == {"expelled", "id"}
    assert names(node) == ["n0", "n1"]
    until(lambda: all(runs_no_more(process.pid) for process in family), 15, "n2 and its role processes end")
    assert said(mesh, 2).count(sentence(WasExpelled())) == 1
    assert said(mesh, 2).rstrip().splitlines()[-1] == sentence(WasExpelled())
    until(partial(goes_on_without, mesh, identity, "n2"), 90, "the job goes on without n2")
    assert node.status()["quorum"]
    assert start_again(mesh, 2) == (CANNOT_START, sentence(WasExpelled()))


@pytest.mark.deep
def test_the_coordinator_can_be_expelled_and_one_that_is_down(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(3)
    nodes = {f"n{index}": dmi.connect(mesh.node(index)) for index in range(3)}
    until(lambda: sum(member["voter"] for member in nodes["n0"].members()) == 3, 15, "three voters")
    first = until(lambda: nodes["n0"].status()["coordinator"], 10, "a coordinator")
    others = [name for name in nodes if name != first]
    pid = mesh.pid(int(first[1:]))
    identity = next(member["id"] for member in nodes[first].members() if member["name"] == first)
    assert nodes[others[0]].expel(identity) == {"name": first, "id": identity}
    until(lambda: runs_no_more(pid), 15, "the coordinator ends")
    until(lambda: nodes[others[0]].status()["coordinator"] in others, 10, "another one coordinates")

    until(lambda: len(voters(nodes[others[0]])) == 1, 10, "one voter of two members")
    [stays] = voters(nodes[others[0]])
    [away] = {*others} - {stays}
    mesh.kill(int(away[1:]))
    nodes[stays].expel(away)
    assert names(nodes[stays]) == [stays]
    assert start_again(mesh, int(away[1:])) == (CANNOT_START, sentence(WasTurnedAway((stays,))))


def voters(node: Mesh) -> list[str]:
    return [member["name"] for member in node.members() if member["voter"]]


def test_who_cannot_be_expelled_is_named_in_a_line(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(1)
    for name, reason in (("n0", IsYourself("n0", is_last=True)), ("n00", UnknownMember("n00"))):
        done = command("expel", name, home=mesh.node(0), check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(sentence(reason))
        assert len(done.stderr.splitlines()) == 1
    assert "did you mean 'n0'" in done.stderr
    assert mesh.status()["quorum"]
