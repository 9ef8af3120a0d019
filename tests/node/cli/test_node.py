"""``join`` writes a configuration; ``run`` that cannot start says so in its own way."""

import ast
import errno
import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import zmq
from click.testing import CliRunner, Result

from dmi_node.cli.main import cli
from dmi_node.config import read
from dmi_node.daemon import RetiredError
from dmi_node.home import Home, HomeBusyError
from dmi_node.joining import Invitation
from dmi_node.storage.journal import IDENTITY, Journal, JournalError, UnwritableError
from dmi_wire.keys import KeyFileError, KeyPair
from tests.sdk.fake_node import FakeNode, value

TOKEN = Invitation("cafe", (("10.0.0.1:7600", KeyPair.make().public),), KeyPair.make().secret, 2_000_000_000).token()


def join(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["join", "--home", str(home), *arguments])


def test_join_writes_what_the_next_start_reads(tmp_path: Path) -> None:
    shown = join(tmp_path / "new", TOKEN, "--name", 'a "quoted" host', "--json")
    path = tmp_path / "new" / "config.toml"
    assert json.loads(shown.output) == {"config": str(path), "member": False, "running": None}
    found = read(path, {}, {})
    assert (found.join, found.name) == (TOKEN, 'a "quoted" host')


def test_a_witness_is_configured_as_one(tmp_path: Path) -> None:
    assert join(tmp_path, TOKEN, "--witness").exit_code == 0
    assert read(tmp_path / "config.toml", {}, {}).witness
    assert not read(tmp_path / "config.toml", {}, {"witness": False}).witness, "a flag wins over the file"
    assert join(tmp_path, TOKEN).exit_code == 0
    assert read(tmp_path / "config.toml", {}, {}).witness, "what else was configured is kept"


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


def be_member(home: Path) -> None:
    """The home looks as it does once its node has founded or joined a mesh."""
    journal = Journal(home / "state.sqlite")
    journal.keep(IDENTITY, b"somebody")
    journal.close()


def status(mesh: str, members: int) -> dict[str, object]:
    return {"mesh": mesh, "node": "n0", "members": [{"name": f"n{index}"} for index in range(members)]}


@pytest.mark.parametrize(
    ("members", "line"),
    [
        (3, "n0 at {} runs as a member of another mesh, with 2 more: `dmi-node leave`, move {} away and join again"),
        (1, "n0 at {} runs as a member of a mesh of its own: stop it, move {} away and join again"),
    ],
)
def test_a_node_that_runs_in_another_mesh_stays_in_it(tmp_path: Path, members: int, line: str) -> None:
    be_member(tmp_path)
    with FakeNode(tmp_path, status=value(status("beef", members))):
        shown = join(tmp_path, TOKEN)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == line.format(tmp_path, tmp_path) + ", or use another --home\n"
    assert not (tmp_path / "config.toml").exists()


def test_a_member_of_this_mesh_has_nothing_to_do(tmp_path: Path) -> None:
    be_member(tmp_path)
    with FakeNode(tmp_path, status=value(status("cafe", 2))):
        shown = join(tmp_path, TOKEN)
        found = json.loads(join(tmp_path, TOKEN, "--json").output)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.output == f"n0 at {tmp_path} is a member of this mesh already: there is nothing to do\n"
    assert found == {"config": str(tmp_path / "config.toml"), "member": True, "running": None}
    assert not (tmp_path / "config.toml").exists()


def test_a_member_that_does_not_run_does_not_join_again(tmp_path: Path) -> None:
    be_member(tmp_path)
    shown = join(tmp_path, TOKEN)
    assert shown.exit_code == 1
    assert f"{tmp_path} is the home of a member of a mesh, and the node does not answer" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert not (tmp_path / "config.toml").exists()


def test_a_node_that_was_not_let_in_may_try_another_invitation(tmp_path: Path) -> None:
    """Its first start made a journal, and did not make it a member."""
    Journal(tmp_path / "state.sqlite").close()
    home = Home(tmp_path)
    home.make()
    home.lock()
    try:
        shown = join(tmp_path, TOKEN)
        found = json.loads(join(tmp_path, TOKEN, "--json").output)
    finally:
        home.unlock()
    assert shown.exit_code == 0
    assert f"process {os.getpid()}, which runs there, reads it only when it starts again" in shown.output
    assert (found["member"], found["running"]) == (False, os.getpid())
    assert read(tmp_path / "config.toml", {}, {}).join == TOKEN
    assert "start the node: dmi-node run" in join(tmp_path, TOKEN).output


def test_the_service_is_started_again_by_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmi_node.cli.node.SERVICE_HOME", tmp_path)
    home = Home(tmp_path)
    home.make()
    home.lock()
    try:
        assert join(tmp_path, TOKEN).output.endswith("when it starts again: systemctl restart dmi-node\n")
    finally:
        home.unlock()
    assert join(tmp_path, TOKEN).output.endswith("start the node: systemctl restart dmi-node\n")


def test_a_home_whose_state_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"garbage" * 1000)
    shown = join(tmp_path, TOKEN)
    assert shown.exit_code == 1
    assert "cannot be read" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnwritableError(Path("state.sqlite"), "no space"), 75),
        (OSError(errno.ENOSPC, "no space"), 75),
        (OSError(errno.EADDRINUSE, "taken"), 75),
        (OSError(errno.EADDRNOTAVAIL, "not there yet"), 75),
        (OSError(errno.EMFILE, "no descriptors"), 75),
        (OSError(errno.ENODEV, "a name that cannot be resolved"), 75),
        (socket.gaierror(socket.EAI_AGAIN, "a name that cannot be resolved"), 75),
        (zmq.ZMQError(errno.EMFILE), 75),
        (MemoryError(), 75),
        (OSError(errno.EACCES, "not ours"), 78),
        (OSError(errno.ENOTDIR, "no folder"), 78),
        (HomeBusyError("another daemon"), 78),
        (KeyFileError("the key"), 78),
        (JournalError("it is damaged"), 78),
        (RetiredError("it was expelled"), 78),
    ],
    ids=repr,
)
def test_whether_starting_again_may_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    async def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("dmi_node.cli.node.serve", fails)
    shown = CliRunner().invoke(cli, ["run", "--home", str(tmp_path)])
    assert (shown.exit_code, len(shown.stderr.splitlines())) == (code, 1)


SHOW = """
import os, pathlib, sys
from dmi_node.cli import node
async def serve(root, config, environment):
    words = pathlib.Path("/proc/self/cmdline").read_bytes().decode().split("\\0")
    print(repr([config.join, words, os.environ.get("DMI_NAME")]))
node.serve = serve
from dmi_node.cli.main import main
main()
"""


def started(home: Path, *arguments: str, typed: str = "", **environment: str) -> list[Any]:
    """What a node is given, and the arguments of its process then."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, "run", "--home", str(home), *arguments],
        input=typed,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    found: list[Any] = ast.literal_eval(done.stdout)
    return found


def test_an_invitation_never_stays_in_the_arguments(tmp_path: Path) -> None:
    file = tmp_path / "invitation"
    file.write_text(f"{TOKEN}\n")
    for arguments, typed, environment in (
        (("--join", TOKEN), "", {}),
        ((f"--join={TOKEN}",), "", {}),
        (("--join-file", str(file)), "", {}),
        (("--join-file", "-"), f"{TOKEN}\n", {}),
        ((), "", {"DMI_JOIN": TOKEN}),
    ):
        given, words, name = started(tmp_path, *arguments, typed=typed, DMI_NAME="kept", **environment)
        assert given == TOKEN
        assert not any(TOKEN in word for word in words), arguments
        assert words[words.index("run") :][:3] == ["run", "--home", str(tmp_path)], "and all else stays"
        assert name == "kept"


@pytest.mark.parametrize(
    "words", [("--witness", TOKEN), ("--name", "n", "--witness", "--", TOKEN), (TOKEN, "--witness")]
)
def test_what_stands_before_an_invitation_stays(tmp_path: Path, words: tuple[str, ...]) -> None:
    arguments = [sys.executable, "-m", "dmi_node", "join", "--home", str(tmp_path), *words]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)
    found = read(tmp_path / "config.toml", {}, {})
    assert (found.join, found.witness) == (TOKEN, True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("join", ""), 2),
        (("join", "dmi"), 2),
        (("join", "dmi-"), 2),
        (("run", "--listen", "127.0.0.1:0", "--join", ""), 78),
        (("run", "--listen", "127.0.0.1:0", "--join=dmi-node"), 78),
    ],
)
def test_what_is_no_invitation_is_no_word_of_the_command(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    """It stands in other words too, the program's own among them."""
    shown = subprocess.run(
        [sys.executable, "-m", "dmi_node", "--home", str(tmp_path / "home"), *words],
        input="print('a prompt')",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (shown.returncode, shown.stdout, len(shown.stderr.splitlines())) == (code, "", 1), shown.stderr
    assert "invitation" in shown.stderr


def test_join_takes_the_token_from_wherever_it_is_safe(tmp_path: Path) -> None:
    file = tmp_path / "invitation"
    file.write_text(f"{TOKEN}\n")
    typed = CliRunner().invoke(cli, ["join", "--home", str(tmp_path / "a"), "--join-file", "-"], input=f"{TOKEN}\n")
    assert typed.exit_code == 0
    assert join(tmp_path / "b", "--join-file", str(file)).exit_code == 0
    assert CliRunner().invoke(cli, ["join", "--home", str(tmp_path / "c")], env={"DMI_JOIN": TOKEN}).exit_code == 0
    for name in "abc":
        assert read(tmp_path / name / "config.toml", {}, {}).join == TOKEN
    nothing = join(tmp_path / "d")
    assert (nothing.exit_code, len(nothing.stderr.splitlines())) == (2, 1)
    assert "DMI_JOIN" in nothing.stderr
    assert join(tmp_path / "e", "--join-file", str(tmp_path / "not there")).exit_code == 2
    assert join(tmp_path / "e", TOKEN, "--join-file", str(file)).exit_code == 2


def test_join_writes_where_the_others_reach_this_node(tmp_path: Path) -> None:
    assert join(tmp_path / "a", TOKEN, "--advertise", "10.0.0.2:7600").exit_code == 0
    assert read(tmp_path / "a" / "config.toml", {}, {}).advertise == "10.0.0.2:7600"
    wrong = join(tmp_path / "b", TOKEN, "--advertise", "10.0.0.2")
    assert (wrong.exit_code, (tmp_path / "b").exists()) == (2, False)
    assert "advertise must be host:port" in wrong.stderr


def run(home: Path, listen: str) -> subprocess.CompletedProcess[str]:
    """A node that ends by itself."""
    arguments = [sys.executable, "-m", "dmi_node", "run", "--home", str(home), "--listen", listen]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("empty", "state.sqlite is empty"),
        ("gone", "state.sqlite is not there"),
        ("key", "node.key_secret is not there"),
    ],
)
def test_what_is_left_of_a_member_founds_nothing(tmp_path: Path, missing: str, hint: str) -> None:
    """It would be a quorum of one, with a key that the others know."""
    be_member(tmp_path)
    KeyPair.make().save(tmp_path / "node.key_secret")
    if missing == "key":
        (tmp_path / "node.key_secret").unlink()
    else:
        (tmp_path / "state.sqlite").unlink()
    if missing == "empty":
        (tmp_path / "state.sqlite").touch()
    shown = run(tmp_path, "127.0.0.1:0")
    assert (shown.returncode, len(shown.stderr.splitlines())) == (78, 1)
    assert hint in shown.stderr
    assert "join again" in shown.stderr
    assert (tmp_path / "node.key_secret").exists() == (missing != "key"), "and nothing is made anew"


def test_a_port_that_is_taken_is_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        shown = run(tmp_path, listen)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (75, 1)
    away = run(tmp_path, "192.0.2.10:7600")
    assert (away.returncode, len(away.stderr.splitlines())) == (75, 1)
    assert "192.0.2.10:7600" in away.stderr
