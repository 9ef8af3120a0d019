"""Verbs about the mesh, against a node that answers from a table."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dmi.mesh import Mesh
from dmi_node.cli.main import cli
from tests.sdk.fake_node import JOB, FakeNode, items, refuse, value

MEMBER = {
    "name": "n0",
    "id": "ab" * 8,
    "state": "alive",
    "address": "127.0.1.1:7600",
    "voter": True,
    "roles": [{"job": "digits-1a2b", "role": "worker-0", "pid": 41}],
    "pid": 40,
    "version": "0.1.0",
    "witness": False,
    "trouble": None,
}
STATUS: dict[str, Any] = {
    "mesh": "cafe",
    "node": "n0",
    "coordinator": "n0",
    "term": 4,
    "quorum": True,
    "quorum_reason": None,
    "refused": {},
    "members": [MEMBER],
    "deployments": [],
    "jobs": [JOB],
}


def invoke(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--home", str(home)])


def test_status_shows_coordinator_members_and_jobs(tmp_path: Path) -> None:
    with FakeNode(tmp_path, status=value(STATUS | {"refused": {"stranger": 3, "garbage": 1}})):
        shown = invoke(tmp_path, "status")
    assert shown.exit_code == 0
    assert "coordinator n0, term 4; no voter can be lost now" in shown.output
    assert "n0    alive  127.0.1.1:7600  yes    40   worker-0" in shown.output
    assert "12 of 12" in shown.output
    assert "refused: 1 garbage, 3 stranger" in shown.output


def test_a_member_in_trouble_is_a_line_of_its_own(tmp_path: Path) -> None:
    said = "n0 cannot write to its disk (it is full)"
    with FakeNode(tmp_path, status=value(STATUS | {"members": [MEMBER | {"trouble": said}]})):
        shown = invoke(tmp_path, "status")
    assert said in shown.output.splitlines()


def test_without_a_quorum_status_says_why_and_ends_with_1(tmp_path: Path) -> None:
    lost = STATUS | {"quorum": False, "coordinator": None, "quorum_reason": "no quorum: n1 and n2 are away"}
    with FakeNode(tmp_path, status=value(lost)):
        shown = invoke(tmp_path, "status")
        plain = invoke(tmp_path, "status", "--json")
    assert (shown.exit_code, plain.exit_code) == (1, 1)
    assert json.loads(plain.output) == lost
    assert "no quorum: n1 and n2 are away" in shown.output


def test_watch_prints_a_line_of_json_for_each_change(tmp_path: Path) -> None:
    with FakeNode(tmp_path, watch=items(STATUS, STATUS | {"term": 5})):
        shown = invoke(tmp_path, "status", "--watch", "--json")
    assert [json.loads(line)["term"] for line in shown.output.splitlines()] == [4, 5]


def test_watching_ends_with_an_interrupt_and_that_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Mesh) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mesh, "watch", interrupted)
    with FakeNode(tmp_path):
        shown = invoke(tmp_path, "status", "--watch")
    assert (shown.exit_code, shown.output) == (0, "")


@pytest.mark.parametrize(("verb", "found"), [("members", [MEMBER]), ("jobs", [JOB]), ("status", STATUS)])
def test_json_is_what_the_node_said(tmp_path: Path, verb: str, found: object) -> None:
    with FakeNode(tmp_path, **{verb: value(found)}):
        assert json.loads(invoke(tmp_path, verb, "--json").output) == found


def test_roles_name_their_shards(tmp_path: Path) -> None:
    role = {"job": "digits-1a2b", "role": "server", "index": 1, "node": "n2", "pid": 7}
    with FakeNode(tmp_path, roles=value([role | {"shards": [{"shard": 1, "primary": True}]}])):
        shown = invoke(tmp_path, "roles")
    assert shown.output.splitlines()[1].split() == ["digits-1a2b", "server-1", "n2", "7", "1"]


def test_an_invitation_alone_is_on_standard_output(tmp_path: Path) -> None:
    with FakeNode(tmp_path, invite=value({"token": "dmi-abc", "expires_unix": 1_800_000_000})) as node:
        shown = invoke(tmp_path, "invite", "--hours", "2")
        assert node.asked[-1] == ("invite", {"ttl_s": 7200})
    assert shown.stdout == "dmi-abc\n"
    assert "good once" in shown.stderr


def test_expel_names_a_member(tmp_path: Path) -> None:
    with FakeNode(tmp_path, expel=value({"name": "n2", "id": "ab" * 8})) as node:
        assert invoke(tmp_path, "expel", "ab" * 8).output == "n2 is no member any more\n"
        assert node.asked[-1] == ("expel", {"node": "ab" * 8})
        assert json.loads(invoke(tmp_path, "expel", "n2", "--json").output) == {"expelled": "n2", "id": "ab" * 8}


@pytest.mark.parametrize(("kind", "code"), [("unknown", 1), ("refused", 1), ("no-quorum", 1), ("usage", 2)])
def test_a_refusal_is_one_line_and_an_exit_code(tmp_path: Path, kind: str, code: int) -> None:
    with FakeNode(tmp_path, expel=refuse(kind, "because of n9")):
        shown = invoke(tmp_path, "expel", "n9")
    assert (shown.exit_code, shown.stdout, shown.stderr) == (code, "", "because of n9\n")


def test_version_names_the_command_and_the_node(tmp_path: Path) -> None:
    with FakeNode(tmp_path):
        found = json.loads(invoke(tmp_path, "version", "--json").output)
    assert found["node"] == "9.9"
    assert found["command"]


def test_version_needs_no_node(tmp_path: Path) -> None:
    shown = invoke(tmp_path / "none", "version")
    found = invoke(tmp_path / "none", "version", "--json")
    assert (shown.exit_code, found.exit_code, shown.stderr) == (0, 0, "")
    assert json.loads(found.output) == {"command": version("dmi"), "node": None}
    assert shown.output.startswith(f"command {version('dmi')}; no node has its home at {tmp_path / 'none'}")
    assert len(shown.output.splitlines()) == 1


def test_a_node_that_answers_nonsense_has_no_version(tmp_path: Path) -> None:
    with FakeNode(tmp_path, version=refuse("internal", "out of order")):
        shown = invoke(tmp_path, "version")
    assert (shown.exit_code, shown.stderr) == (1, "out of order\n")


TWO = STATUS | {"members": [MEMBER, MEMBER | {"name": "n1", "id": "cd" * 8}]}
DRAINED = {"name": "n0", "id": "ab" * 8, "roles": 0, "copies": 0}


def test_a_node_leaves_when_others_have_all_that_it_has(tmp_path: Path) -> None:
    with FakeNode(tmp_path, status=value(TWO), drain=value(DRAINED), leave=value({})) as node:
        assert invoke(tmp_path, "leave").exit_code == 0
    assert [verb for verb, _ in node.asked][-1] == "leave"


def test_a_node_that_alone_has_something_stays_and_says_so_unless_it_is_forced(tmp_path: Path) -> None:
    with FakeNode(tmp_path, status=value(TWO), drain=value(DRAINED | {"copies": 3}), leave=value({})) as node:
        refused = invoke(tmp_path, "leave", "--within", "0")
        assert refused.exit_code == 1
        assert "n0 stays: 3 files or parts of checkpoints could not be copied" in refused.output
        assert [verb for verb, _ in node.asked][-1] == "drain"
        assert invoke(tmp_path, "leave", "--within", "0", "--force").exit_code == 0


def test_what_a_drained_node_alone_has_is_said(tmp_path: Path) -> None:
    with FakeNode(tmp_path, drain=value(DRAINED | {"copies": 3})):
        shown = invoke(tmp_path, "drain", "n0", "--within", "0")
    assert shown.exit_code == 1
    assert "has no roles any more, but 3 files or parts of checkpoints are on too few other nodes" in shown.output
