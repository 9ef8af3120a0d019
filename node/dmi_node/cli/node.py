"""Verbs that are a node, or set one up."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import uvloop
import zmq

from dmi.connection import SERVICE_HOME, Connection, default_home
from dmi.errors import DmiError, UsageError
from dmi.mesh import Mesh
from dmi_node import config as configuration
from dmi_node import logs
from dmi_node.cli import output, secrets
from dmi_node.cli.options import home, home_option, json_option, telling
from dmi_node.cli.output import end
from dmi_node.config import ConfigError, split
from dmi_node.daemon import RetiredError, serve
from dmi_node.home import HomeBusyError, owner_of
from dmi_node.joining import Invitation, JoinError, MeshAwayError
from dmi_node.passing import passes
from dmi_node.storage.journal import IDENTITY, JournalError, UnwritableError, has_fact
from dmi_wire.keys import KeyFileError

CANNOT_START = 78
"""The configuration or the home is wrong, or the node was expelled, so starting again will not help (systemd:
RestartPreventExitStatus)."""
TRY_AGAIN = 75
"""What passes: the mesh that this node was invited to does not answer yet, the disk is full, an address is not there yet, a port
is taken, descriptors or memory are short. Starting again may help, and systemd does."""


@click.command(epilog="Example: dmi-node run --listen 0.0.0.0:7600 --advertise 10.0.0.5:7600 --join-file FILE")
@home_option
@click.option("--name", help="What people call this node; its host's name by default.")
@click.option("--listen", metavar="HOST:PORT", help="Where to hear the mesh.")
@click.option(
    "--advertise", metavar="HOST:PORT", help="Where the others reach this node; what it listens on by default."
)
@click.option("--join", metavar="TOKEN", help="An invitation, for a home that is no member yet; DMI_JOIN is better.")
@click.option("--join-file", metavar="PATH", help="A file with an invitation; - to be asked for it, or from a pipe.")
@click.option(
    "--witness", is_flag=True, default=None, help="Vote, and play no role for any job; counts at the first start."
)
@click.option(
    "--quota", metavar="SIZE", help="How much models and jobs may take of the disk before no more is taken in: 50GB."
)
@click.option(
    "--cpus", type=click.IntRange(min=0), metavar="N", help="How many processors jobs may be promised; all by default."
)
@click.option("--memory", metavar="SIZE", help="How much memory jobs may be promised: 16GB; all by default.")
def run(join_file: str | None, **flags: Any) -> None:
    """Run one node, in the foreground; what the systemd unit runs.

    A new home without a token founds a mesh. A home that is a member already needs no flag. Exit code 78: this node
    cannot start as it is, or was expelled, so starting it again would not help; 75: what is in the way passes (the mesh to
    join does not answer yet, the disk is full, an address is not there yet, a port is taken), so it may.

    Others on this host can read the arguments of a process: an invitation that stands there is taken out at once, and one in
    DMI_JOIN or in a file never stands there.
    """
    root = Path(home() or default_home())
    try:
        flags["join"] = secrets.given(flags["join"], join_file)
        found = configuration.read(root / "config.toml", os.environ, flags)
        logs.configure(found.log_level)
        uvloop.run(serve(root, found, os.environ))
    except (MeshAwayError, UnwritableError) as error:
        end(str(error), TRY_AGAIN)
    except (ConfigError, HomeBusyError, JoinError, KeyFileError, JournalError, RetiredError, UsageError) as error:
        end(str(error), CANNOT_START)
    except zmq.ZMQError as error:  # which is no OSError
        end(f"this node cannot run: {error}", TRY_AGAIN if passes(OSError(error.errno, "")) else CANNOT_START)
    except (OSError, MemoryError) as error:
        end(f"this node cannot run: {error or 'no memory is left'}", TRY_AGAIN if passes(error) else CANNOT_START)
    except asyncio.CancelledError:
        sys.exit(0)


@click.command(epilog="Example: dmi-node join --join-file - --advertise 10.0.0.5:7600")
@home_option
@json_option
@click.argument("token", required=False)
@click.option("--join-file", metavar="PATH", help="A file with the token; - to be asked for it, or from a pipe.")
@click.option("--advertise", metavar="HOST:PORT", help="Where the others reach this node.")
@click.option("--name", help="What people call this node; its host's name by default.")
@click.option("--witness", is_flag=True, help="Vote, and play no role for any job: a third vote for a mesh of two.")
def join(
    token: str | None, join_file: str | None, advertise: str | None, name: str | None, witness: bool, as_json: bool
) -> None:
    """Let this host join a mesh: writes the home's configuration, which the node reads when it starts. The token may as well
    stand in DMI_JOIN, in a file, or be typed: arguments can be read by others on this host.

    Says what to do next. Nothing that runs is touched: a home that is a member of another mesh stays one, and a node
    that still waits to be let in takes the new invitation when it is started again.
    """
    with telling():
        root = Path(home() or default_home()).absolute()
        token = secrets.given(token, join_file) or os.environ.get("DMI_JOIN")
        if token is None:
            raise UsageError("an invitation is wanted: as an argument, in DMI_JOIN, or --join-file PATH (- to type it)")
    try:
        if advertise is not None:
            split(advertise, "advertise")
        invitation = Invitation.of_token(token)
        is_member = has_fact(root / "state.sqlite", IDENTITY)
    except (JoinError, ConfigError) as error:
        end(str(error), output.USAGE)
    except JournalError as error:
        end(f"{error}; ask as the owner of {root}, or use another --home", output.UNHEALTHY)
    settings: dict[str, str | bool] = {"join": token.strip()}
    settings |= {key: value for key, value in (("name", name), ("advertise", advertise)) if value}
    settings |= {"witness": True} if witness else {}
    said = _of_member(root, invitation) if is_member else _configure(root, settings)
    if as_json:
        output.as_json({"config": str(root / "config.toml"), "member": is_member, "running": owner_of(root)})
    else:
        click.echo(said)


def _configure(root: Path, settings: Mapping[str, str | bool]) -> str:
    """Write the configuration; gives what to do next."""
    path = root / "config.toml"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _set(path, settings)
    except OSError as error:
        end(f"{path} cannot be written ({error.strerror}): run this as the owner of {root}", output.UNHEALTHY)
    start = "systemctl restart dmi-node" if root == SERVICE_HOME else f"dmi-node run --home {root}"
    if (pid := owner_of(root)) is None:
        return f"{path} is written; start the node: {start}"
    again = start if root == SERVICE_HOME else f"end it, then {start}"
    return f"{path} is written; process {pid}, which runs there, reads it only when it starts again: {again}"


def _of_member(root: Path, invitation: Invitation) -> str:
    """Nothing to do for a member of the very mesh; any other member is refused."""
    try:
        seen = Mesh(Connection(root)).status()
    except DmiError:
        end(
            f"{root} is the home of a member of a mesh, and the node does not answer: start it and `dmi-node leave`, "
            f"or give it up; then move {root} away and join again, or use another --home",
            output.UNHEALTHY,
        )
    if seen["mesh"] != invitation.mesh:
        others = len(seen["members"]) - 1
        mesh = f"another mesh, with {others} more" if others else "a mesh of its own"
        first = "`dmi-node leave`" if others else "stop it"
        end(
            f"{seen['node']} at {root} runs as a member of {mesh}: {first}, move {root} away and join again, "
            "or use another --home",
            output.UNHEALTHY,
        )
    return f"{seen['node']} at {root} is a member of this mesh already: there is nothing to do"


def _set(path: Path, values: Mapping[str, str | bool]) -> None:
    """Set top-level keys of a TOML file and keep its other lines. It holds a secret, so only the home's owner may read."""
    text = path.read_text() if path.exists() else ""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    lines += [line for line in text.splitlines() if line.partition("=")[0].strip() not in values]
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
        owner = path.parent.stat()
        if os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)  # the service has a user of its own
    new.replace(path)
