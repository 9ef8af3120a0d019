"""A node is emptied while a job trains on it: nothing is lost, nothing begins again, and then it leaves."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import dmi
from tests.mesh.local import ROOT, LocalMesh, command, submit, until
from tests.mesh.test_recovery import is_under_way, ledgers, processes, roles
from tests.mesh.test_same_bits import plain, sha256

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

MakeMesh = Callable[[int], LocalMesh]
STEADY = Path(__file__).parent / "scripts" / "steady.py"
EPOCHS = 45
LEAVES = 8


@pytest.mark.deep
def test_a_node_that_drains_gives_its_roles_away_and_leaves(make_mesh: MakeMesh, tmp_path: Path) -> None:
    mesh = make_mesh(3)
    node = dmi.connect(mesh.node(0))
    identity = submit(mesh, STEADY, "--", str(EPOCHS))
    until(partial(is_under_way, node, identity), 90, "the job has backups")
    others = {role["pid"] for role in roles(node, identity) if role["node"] != "n2"}
    said = json.loads(command("drain", "n2", "--json", home=mesh.node(0)).stdout)
    assert (said["node"], said["draining"], said["roles"]) == ("n2", True, 0)
    assert {role["node"] for role in roles(node, identity)} == {"n0", "n1"}
    assert others <= processes(node, identity), "nobody else was started again"

    command("leave", home=mesh.node(2))
    until(lambda: len(node.status()["members"]) == 2, 20, "n2 is no member any more")
    ended = node.job(identity).wait()
    assert (ended["state"], ended["step"]) == ("succeeded", EPOCHS * 8)
    command("export", identity, tmp_path / "mesh.safetensors", home=mesh.node(1))
    script = str(STEADY.relative_to(ROOT))
    assert sha256(tmp_path / "mesh.safetensors") == plain(tmp_path / "plain.safetensors", script, str(EPOCHS))
    assert len(ledgers(mesh, identity)) <= (EPOCHS * 8 + 3) * LEAVES, "only a step in flight was computed twice"


def test_what_cannot_be_drained_is_said(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(1)
    missed = command("drain", "n7", home=mesh.node(0), check=False)
    assert missed.returncode == 1
    assert "no member is named 'n7'" in missed.stderr
    command("drain", "n0", home=mesh.node(0))
    assert command("drain", "n0", "--undo", home=mesh.node(0)).stdout.strip() == "n0 may have roles again"
