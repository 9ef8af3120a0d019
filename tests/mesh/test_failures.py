"""Daemons die as hosts do. What the survivors say, and how soon."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import psutil
import pytest

import dmi
from dmi.connection import Connection
from dmi.errors import NoNodeError
from dmi.mesh import Mesh
from tests.mesh.local import ROOT, LocalMesh, command, job, submit, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

MakeMesh = Callable[[int], LocalMesh]
DIGITS = ROOT / "examples" / "digits.py"


def connections(mesh: LocalMesh) -> dict[str, Mesh]:
    return {f"n{index}": dmi.connect(mesh.node(index)) for index in range(mesh.size)}


def everybody_is_alive(node: Mesh, size: int) -> bool:
    try:
        status = node.status()
    except NoNodeError:
        return False
    return status["quorum"] and [m["state"] for m in status["members"]] == ["alive"] * size


def voters(node: Mesh) -> int:
    return sum(member["voter"] for member in node.status()["members"])


def coordinator(mesh: LocalMesh, nodes: dict[str, Mesh]) -> int:
    name = until(lambda: nodes["n0"].status()["coordinator"], 10, "a coordinator")
    until(lambda: {n.status()["coordinator"] for n in nodes.values()} == {name}, 10, "all name the same coordinator")
    return int(name.removeprefix("n"))


def another_leads(survivors: list[Mesh], old: int) -> bool:
    named = {survivor.status()["coordinator"] for survivor in survivors}
    return len(named) == 1 and not named & {None, f"n{old}"}


def sees(survivor: Mesh, index: int, pid: int) -> bool:
    member = next(m for m in survivor.status()["members"] if m["name"] == f"n{index}")
    return bool(member["state"] == "alive" and member["pid"] == pid)


def all_see(survivors: list[Mesh], index: int, pid: int) -> bool:
    return all(sees(survivor, index, pid) for survivor in survivors)


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.deep)])
def test_another_node_leads_within_a_second(make_mesh: MakeMesh, times: int) -> None:
    """`kill -9` of the coordinator, again and again: the median of the time until both survivors name another one."""
    mesh = make_mesh(3)
    nodes = connections(mesh)
    elections, returns = [], []
    for _ in range(times):
        until(lambda: all(everybody_is_alive(n, 3) for n in nodes.values()), 15, "all alive")
        until(lambda: voters(nodes["n0"]) == 3, 15, "three voters")
        old = coordinator(mesh, nodes)
        survivors = [node for name, node in nodes.items() if name != f"n{old}"]
        mesh.kill(old)
        start = time.monotonic()
        until(partial(another_leads, survivors, old), 10, "a new coordinator")
        elections.append(time.monotonic() - start)
        pid = mesh.start(old)
        start = time.monotonic()
        until(partial(all_see, survivors, old, pid), 10, "the node is back")
        returns.append(time.monotonic() - start)
    print(f"\nnew coordinator after {sorted(round(s, 3) for s in elections)} s, median {median(elections):.3f}")
    print(f"killed node back after {sorted(round(s, 3) for s in returns)} s, median {median(returns):.3f}")
    assert median(elections) < 1.0
    assert median(returns) < 2.0


def test_a_survivor_without_a_quorum_says_so(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(3)
    nodes = connections(mesh)
    until(lambda: voters(nodes["n0"]) == 3, 15, "three voters")
    for index in (1, 2):
        mesh.kill(index)
    until(lambda: "no quorum" in (nodes["n0"].status()["quorum_reason"] or ""), 15, "n0 sees that there is no quorum")
    said = command("status", home=mesh.node(0), check=False)
    assert said.returncode == 1
    assert "no quorum" in said.stdout + said.stderr
    assert "n1" in said.stdout
    assert "n2" in said.stdout


def moves(mesh: LocalMesh, identity: str) -> bool:
    return (job(mesh, identity)["step"] or 0) > 2


def is_lost(node: Mesh, identity: str) -> bool:
    """The others may have taken over by the time that we look: the reason stays until all is made good."""
    return any(j["id"] == identity and j["reason"] is not None for j in node.status()["jobs"])


@pytest.mark.deep
def test_a_role_that_dies_is_in_status_within_half_a_second(make_mesh: MakeMesh) -> None:
    """With a reason that names it."""
    mesh = make_mesh(3)
    nodes = connections(mesh)
    delays = []
    for role in ("worker", "server", "worker"):
        identity = submit(mesh, DIGITS, "--", "--epochs", "1000")
        until(partial(moves, mesh, identity), 90, "the job moves")
        victim = next(r for r in nodes["n0"].roles() if r["job"] == identity and r["role"].startswith(role))
        os.kill(victim["pid"], signal.SIGKILL)
        start = time.monotonic()
        node = next(node for name, node in nodes.items() if name != victim["node"])
        until(partial(is_lost, node, identity), 10, "the death is in status on another node")
        delays.append(time.monotonic() - start)
        why = command("why", identity, home=mesh.node(0), check=False).stdout
        assert role in why
        assert victim["node"] in why
        command("cancel", identity, home=mesh.node(0))
    print(f"\ndeath of a role in another node's status after {[round(s, 3) for s in delays]} s")
    assert median(delays) < 0.5


@pytest.mark.deep
def test_a_role_that_stops_moving_is_ended_and_named(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(2)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, DIGITS, "--", "--epochs", "1000")
    until(partial(moves, mesh, identity), 90, "the job moves")
    victim = next(r for r in node.roles() if r["role"] == "worker")
    os.kill(victim["pid"], signal.SIGSTOP)
    until(partial(is_lost, node, identity), 20, "the others take over")
    assert "stopped moving" in command("why", identity, home=mesh.node(0), check=False).stdout
    assert not psutil.pid_exists(victim["pid"])


def test_a_whole_mesh_that_was_killed_comes_back_as_it_was(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(3)
    until(lambda: voters(dmi.connect(mesh.node(0))) == 3, 15, "three voters")
    before = mesh.status()
    for index in range(3):
        mesh.kill(index)
    for index in range(3):
        mesh.start(index)
    node = Mesh(Connection(mesh.node(1)))
    until(lambda: everybody_is_alive(node, 3), 15, "all are alive again")
    assert node.status()["mesh"] == before["mesh"]


@pytest.mark.deep
def test_children_end_with_their_daemon(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(1)
    identity = submit(mesh, DIGITS, "--", "--epochs", "1000")
    until(partial(moves, mesh, identity), 90, "the job moves")
    children = psutil.Process(mesh.pid(0)).children(recursive=True)
    assert len(children) >= 2
    mesh.kill(0)
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
