"""Verbs about the mesh and its members."""

import contextlib
import sys
import time
from importlib.metadata import version as installed
from typing import Any

import click

import dmi.mesh
from dmi.errors import NoNodeError
from dmi.mesh import Mesh
from dmi_node.cli import live, output, wording
from dmi_node.cli.options import asks_mesh, home, home_option, json_option, telling

_LOOK_S = 0.2
"""How often a node that drains is looked at."""


@click.command(epilog="Example: dmi-node status --watch")
@click.option("--watch", is_flag=True, help="Stay, and show every change.")
@asks_mesh
def status(mesh: Mesh, watch: bool, as_json: bool) -> None:
    """The mesh, its members and its jobs. Exit code 1 when there is no quorum."""
    if watch:
        _watch(mesh, as_json=as_json)
        return
    seen = mesh.status()
    _show(seen, as_json=as_json)
    if not seen["quorum"]:
        sys.exit(output.UNHEALTHY)


def _show(seen: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.as_json(seen)
        return
    click.echo(wording.headline(seen))
    output.table(wording.MEMBER_COLUMNS, map(wording.member_row, seen["members"]))
    for trouble in wording.troubles(seen):
        click.echo(f"\n{trouble}")
    if seen["deployments"]:
        click.echo()
        output.table(wording.DEPLOYMENT_COLUMNS, map(wording.deployment_row, seen["deployments"]))
    if seen["jobs"]:
        click.echo()
        output.jobs(seen["jobs"])
    if seen["refused"]:
        click.echo(f"\n{wording.refused(seen)}")


def _watch(mesh: Mesh, *, as_json: bool) -> None:
    """Until Ctrl-C, which is how one ends it."""
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            _watch_lines(mesh, as_json=as_json)
            return
        console = live.terminal(sys.stdout)
        if console is None:
            _watch_lines(mesh, as_json=False)
        else:
            live.show(map(live.of_mesh, mesh.watch()), console)


def _watch_lines(mesh: Mesh, *, as_json: bool) -> None:
    for seen in mesh.watch():
        _show(seen, as_json=as_json)


@click.command(epilog="Example: dmi-node members")
@asks_mesh
def members(mesh: Mesh, as_json: bool) -> None:
    """The nodes of the mesh, as the local node sees them."""
    found = mesh.members()
    if as_json:
        output.as_json(found)
    else:
        output.table(wording.WHOLE_MEMBER_COLUMNS, map(wording.whole_member_row, found))


@click.command(epilog="Example: dmi-node roles")
@asks_mesh
def roles(mesh: Mesh, as_json: bool) -> None:
    """The role processes of all jobs that go on."""
    found = mesh.roles()
    if as_json:
        output.as_json(found)
        return
    rows = [
        [role["job"], f"{role['role']}-{role['index']}", role["node"], str(role["pid"]), _shards(role)]
        for role in found
    ]
    output.table(("job", "role", "node", "pid", "shards"), rows)


def _shards(role: dict[str, Any]) -> str:
    return ", ".join(f"{copy['shard']}{'' if copy['primary'] else ' (backup)'}" for copy in role["shards"])


@click.command(epilog="Example: dmi-node invite --hours 2")
@click.option(
    "--hours", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="How long it is good for."
)
@asks_mesh
def invite(mesh: Mesh, hours: float, as_json: bool) -> None:
    """Make a token that lets one new node join, once. Keep it like a password."""
    made = mesh.invite(max(1, round(hours * 3600)))
    if as_json:
        output.as_json(made)
        return
    click.echo(made["token"])
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(made["expires_unix"]))
    click.echo(f"good once, until {until}; on the new host: dmi-node join --join-file - (which asks for it)", err=True)


@click.command(epilog="Example: dmi-node leave")
@click.option(
    "--within", type=click.IntRange(min=0), default=60, show_default=True, help="How many seconds to drain it first."
)
@click.option("--force", is_flag=True, help="Leave although something is lost with it.")
@asks_mesh
def leave(mesh: Mesh, within: int, force: bool, as_json: bool) -> None:
    """This node gives its roles away, leaves the mesh for good, and ends. To end it only for now, stop its service.

    What it alone has of jobs (their files, checkpoints and results) is copied to others first.
    """
    here = mesh.status()
    if len(here["members"]) > 1:
        found = _drained(mesh, here["node"], undo=False, within=within)
        if found["copies"] and not force:
            output.end(
                f"{found['name']} stays: {_blobs(found)} could not be copied to other nodes within {within} s; give it more "
                "time with --within, look at `dmi-node members`, or lose them with --force",
                output.UNHEALTHY,
            )
    mesh.leave()
    if as_json:
        output.as_json({"left": True})


@click.command(epilog="Example: dmi-node drain n3")
@click.argument("node")
@click.option("--undo", is_flag=True, help="The node may have roles again.")
@click.option("--within", type=click.IntRange(min=0), default=600, show_default=True, help="How many seconds to wait.")
@asks_mesh
def drain(mesh: Mesh, node: str, undo: bool, within: int, as_json: bool) -> None:
    """Move everything off NODE (name or id), and give it nothing new: before its host is shut down, say.

    Trainings go on meanwhile: copies of shards are made elsewhere before those on NODE are given up. It stays a member.
    """
    found = _drained(mesh, node, undo=undo, within=within)
    if as_json:
        output.as_json(
            {
                "node": found["name"],
                "id": found["id"],
                "draining": not undo,
                "roles": found["roles"],
                "copies": found["copies"],
            }
        )
    elif undo:
        click.echo(f"{found['name']} may have roles again")
    elif found["roles"]:
        click.echo(
            f"{found['name']} still has {found['roles']} roles, and gets no new ones; is there another node for them?"
        )
    elif found["copies"]:
        click.echo(f"{found['name']} has no roles any more, but {_blobs(found)} are on too few other nodes; ask again")
    else:
        click.echo(f"{found['name']} has no roles any more, and nothing that others have not")
    if (found["roles"] or found["copies"]) and not undo:
        raise SystemExit(1)


def _blobs(found: dict[str, Any]) -> str:
    return f"{found['copies']} files or parts of checkpoints"


def _drained(mesh: Mesh, node: str, *, undo: bool, within: int) -> dict[str, Any]:
    """Wait until nothing is left there."""
    end = time.monotonic() + within
    while True:
        found = mesh.drain(node, on=not undo)
        if undo or not (found["roles"] or found["copies"]) or time.monotonic() >= end:
            return found
        time.sleep(_LOOK_S)


@click.command(epilog="Example: dmi-node expel n3")
@click.argument("node")
@asks_mesh
def expel(mesh: Mesh, node: str, as_json: bool) -> None:
    """Take the membership of NODE (name or id) away: its vote, its key, and what it does for jobs.

    Its key counts no more, on open connections too. A daemon that runs there says so and ends, and systemd does not start
    it again; jobs that it took part in go on without it. A node that you can ask yourself had better `leave`.
    """
    found = mesh.expel(node)
    if as_json:
        output.as_json({"expelled": found["name"], "id": found["id"]})
    else:
        click.echo(f"{found['name']} is no member any more")


@click.command(epilog="Example: dmi-node version --json")
@home_option
@json_option
def version(as_json: bool) -> None:
    """The versions of the command and of the node; of the command alone when no node answers."""
    command, node, line = installed("dmi"), None, ""
    with telling():
        try:
            node = dmi.mesh.connect(home()).version()
        except NoNodeError as error:
            line = str(error)
    if as_json:
        output.as_json({"command": command, "node": node})
    else:
        click.echo(f"command {command}, node {node}" if node is not None else f"command {command}; {line}")
