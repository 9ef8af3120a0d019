"""``join`` writes a configuration; ``run`` that cannot start says so in its own way."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dmi_node.cli.main import cli
from dmi_node.config import read
from dmi_node.joining import Invitation
from dmi_wire.keys import KeyPair

TOKEN = Invitation("cafe", (("10.0.0.1:7600", KeyPair.make().public),), KeyPair.make().secret, 2_000_000_000).token()


def join(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["join", "--home", str(home), *arguments])


def test_join_writes_what_the_next_start_reads(tmp_path: Path) -> None:
    shown = join(tmp_path / "new", TOKEN, "--name", 'a "quoted" host', "--json")
    path = tmp_path / "new" / "config.toml"
    assert json.loads(shown.output) == {"config": str(path)}
    found = read(path, {}, {})
    assert (found.join, found.name) == (TOKEN, 'a "quoted" host')


def test_join_keeps_what_else_was_configured(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('# ours\nname = "keep"\nlisten = "0.0.0.0:7600"\njoin = "dmi-old"\n')
    assert join(tmp_path, TOKEN).exit_code == 0
    assert tomllib.loads(path.read_text()) == {"join": TOKEN, "name": "keep", "listen": "0.0.0.0:7600"}
    assert "# ours" in path.read_text()


def test_an_invitation_is_a_secret_wherever_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch(mode=0o644)
    assert join(tmp_path, TOKEN).exit_code == 0
    assert (tmp_path / "config.toml").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("token", [TOKEN[:-4], "nonsense", "dmi-"])
def test_a_token_that_is_not_whole_changes_nothing(tmp_path: Path, token: str) -> None:
    shown = join(tmp_path / "new", token)
    assert shown.exit_code == 2
    assert "not whole" in shown.stderr
    assert not (tmp_path / "new").exists()


def test_a_member_does_not_join_again(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").touch()
    shown = join(tmp_path, TOKEN)
    assert shown.exit_code == 1
    assert "is a member of a mesh already" in shown.stderr
    assert not (tmp_path / "config.toml").exists()


@pytest.mark.parametrize(
    ("config", "line"), [("liste = 1", "did you mean 'listen'?"), ('listen = "here"', "must be host:port")]
)
def test_a_node_that_cannot_start_says_so_with_its_own_code(tmp_path: Path, config: str, line: str) -> None:
    """systemd does not start it again: it would not help."""
    (tmp_path / "config.toml").write_text(config)
    shown = CliRunner().invoke(cli, ["run", "--home", str(tmp_path)])
    assert shown.exit_code == 78
    assert line in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
