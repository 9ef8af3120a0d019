"""``dmi-node token``: who may ask gateways."""

import time

import click

import dmi.mesh
from dmi.mesh import Mesh
from dmi_node.cli import output
from dmi_node.cli.options import asks_mesh, home, home_option, json_option, telling


@click.group(invoke_without_command=True, epilog="Example: dmi-node token add website")
@json_option
@home_option
@click.pass_context
def token(context: click.Context, *, as_json: bool) -> None:
    """The tokens that let one ask gateways that are not on loopback. With a verb: add one, take it back."""
    if context.invoked_subcommand is None:
        with telling():
            found = dmi.mesh.connect(home()).tokens()
        if as_json:
            output.as_json(found)
            return
        rows = [
            (each["name"], each["scope"], time.strftime("%Y-%m-%d", time.localtime(each["added_unix"])))
            for each in found
        ]
        output.table(("token", "scope", "since"), rows)


@token.command(epilog="Example: dmi-node token add website")
@click.argument("name")
@click.option("--scope", type=click.Choice(["infer"]), default="infer", show_default=True, help="What it is good for.")
@asks_mesh
def add(mesh: Mesh, name: str, scope: str, as_json: bool) -> None:
    """Make a token and print it, once: the mesh keeps its digest alone. Requests show it as `Authorization: Bearer TOKEN`."""
    made = mesh.add_token(name, scope)
    if as_json:
        output.as_json(made)
    else:
        click.echo(made["token"])


@token.command(epilog="Example: dmi-node token rm website")
@click.argument("name")
@asks_mesh
def rm(mesh: Mesh, name: str, as_json: bool) -> None:
    """Take a token back: it lets nobody in any more, on any node."""
    mesh.remove_token(name)
    if as_json:
        output.as_json({"removed": name})
    else:
        click.echo(f"{name} lets nobody in any more")
