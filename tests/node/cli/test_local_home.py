"""Where ``up`` and ``down`` keep their mesh: a developer's nodes never touch the service's home."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import dmi.connection
from dmi.connection import default_home
from dmi_node.cli import local
from dmi_node.cli.main import cli


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a service of this host. No verb of the test starts or ends anything there."""
    path = tmp_path / "var" / "dmi-node"
    path.mkdir(parents=True)
    for module in (dmi.connection, local):
        monkeypatch.setattr(module, "SERVICE_HOME", path)
    monkeypatch.setattr(local, "_start", lambda root, nodes: pytest.fail(f"started under {root}"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("DMI_HOME", raising=False)
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_the_service_s_home_is_refused(service: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "link").symlink_to(service)
    for home in (service, service / "n0", tmp_path / "link", service.parent / "." / "dmi-node"):
        shown = invoke(verb, "--home", str(home))
        assert shown.exit_code == 2
        assert "belongs to this host's service" in shown.stderr
        assert len(shown.stderr.splitlines()) == 1
    assert list(service.iterdir()) == []


def test_by_default_it_is_in_the_user_s_directory(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "me" / ".local" / "state" / "dmi-node"
    assert default_home() == service
    assert invoke("down").output == f"no node runs under {mine}\n"
    monkeypatch.setattr(local, "_start", lambda root, nodes: [])
    shown = invoke("up", "--nodes", "2", "--detach")
    assert f"2 nodes are up under {mine}; `dmi-node down --home {mine}` ends them" in shown.output
    assert f"other verbs ask this host's service unless they get --home {mine}" in shown.output
    assert json.loads(invoke("up", "--nodes", "1", "--detach", "--json").output) == {"home": str(mine), "nodes": ["n0"]}


def test_without_a_service_every_verb_finds_it(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service.rmdir()
    monkeypatch.setattr(local, "_start", lambda root, nodes: [])
    assert default_home() == tmp_path / "me" / ".local" / "state" / "dmi-node"
    assert invoke("up", "--detach").output.endswith(" ends them\n")


def test_a_home_that_was_named_is_taken(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMI_HOME", str(tmp_path / "named"))
    assert invoke("down").output == f"no node runs under {tmp_path / 'named'}\n"
    assert invoke("down", "--home", str(tmp_path / "other")).output == f"no node runs under {tmp_path / 'other'}\n"
