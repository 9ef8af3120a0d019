"""Verbs about models."""

from typing import Any

import click

import dmi.mesh
from dmi.mesh import Mesh
from dmi_node.cli import output, wording
from dmi_node.cli.options import SIZE, asks_mesh, home, home_option, json_option, telling


@click.group(invoke_without_command=True, epilog="Example: dmi-node models add digits digits.pt2")
@json_option
@home_option
@click.pass_context
def models(context: click.Context, *, as_json: bool) -> None:
    """The models that the mesh keeps: every version. With a verb: add one, show it, remove it."""
    if context.invoked_subcommand is None:
        with telling():
            found = dmi.mesh.connect(home()).models.versions()
        if as_json:
            output.as_json(found)
        else:
            output.table(wording.MODEL_COLUMNS, map(wording.model_row, found))


@models.command(epilog="Example: dmi-node models add digits --job digits-1a2b --model net.py:make")
@click.argument("name")
@click.argument("path", required=False)
@click.option("--weights", metavar="FILE", help="With module:function: its weights, a safetensors file.")
@click.option("--job", metavar="JOB", help="Take the weights of this training.")
@click.option("--model", metavar="MODULE:FUNCTION", help="With --job: what makes the model.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=DTYPE[N,...]",
    help="What goes in, where that is not found out: x=float32[N,3,224,224].",
)
@asks_mesh
def add(
    mesh: Mesh,
    name: str,
    path: str | None,
    weights: str | None,
    job: str | None,
    model: str | None,
    inputs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Keep PATH as the next version of NAME: TorchScript, an exported program, or module:function with --weights.

    A FILE.py:FUNCTION travels with its weights. The model is run once, to find out what goes in and comes out.
    """
    _show(mesh.models.add(name, path, weights=weights, job=job, model=model, inputs=inputs), as_json=as_json)


@models.command(epilog="Example: dmi-node models show digits:2")
@click.argument("name")
@asks_mesh
def show(mesh: Mesh, name: str, as_json: bool) -> None:
    """One version: NAME:NUMBER, or the newest of NAME."""
    _show(mesh.models.show(name), as_json=as_json)


@models.command(epilog="Example: dmi-node models rm digits:1")
@click.argument("name")
@asks_mesh
def rm(mesh: Mesh, name: str, as_json: bool) -> None:
    """Remove a version (NAME:NUMBER), or all of NAME, and free its space."""
    gone = mesh.models.remove(name)
    if as_json:
        output.as_json({"removed": gone})
    else:
        click.echo(f"removed {', '.join(gone)}")


@models.command(epilog="Example: dmi-node models cut big --memory 200MB")
@click.argument("name")
@click.option("--memory", type=SIZE, metavar="SIZE", required=True, help="Bytes of weights that a process may hold.")
@asks_mesh
def cut(mesh: Mesh, name: str, memory: int, as_json: bool) -> None:
    """Cut a version into stages by memory, so that several nodes serve it as one, with the bits of the whole.

    `serve --memory-per-replica` and `infer` with `memory_per_replica` do so themselves. The model is loaded once, here.
    """
    _show(mesh.models.cut(name, memory), as_json=as_json)


@models.command(epilog="Example: dmi-node models promote digits:3")
@click.argument("name")
@asks_mesh
def promote(mesh: Mesh, name: str, as_json: bool) -> None:
    """Serve NAME:NUMBER, or the newest of NAME, from now on. Replicas load it while they serve; no request fails."""
    show_served(mesh.models.promote(name), as_json=as_json)


@models.command(epilog="Example: dmi-node models rollback digits")
@click.argument("name")
@asks_mesh
def rollback(mesh: Mesh, name: str, as_json: bool) -> None:
    """Serve the version of NAME that was served before, and stay with it."""
    show_served(mesh.models.rollback(name), as_json=as_json)


@models.command(epilog="Example: dmi-node models pin digits")
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take newer ones again.")
@asks_mesh
def pin(mesh: Mesh, name: str, undo: bool, as_json: bool) -> None:
    """Stay with the version of NAME that is served, whatever a training publishes."""
    show_served(mesh.models.pin(name, on=not undo), as_json=as_json)


@click.command(epilog="Example: dmi-node df")
@click.option("--all", "everything", is_flag=True, help="Each model and job, too.")
@asks_mesh
def df(mesh: Mesh, everything: bool, as_json: bool) -> None:
    """What lies on the nodes' disks: models, files of jobs (with checkpoints and results), and what is free.

    What is unclaimed belongs to nothing that the mesh knows any more, and goes within half an hour.
    """
    found = mesh.disks()
    if as_json:
        output.as_json(found)
        return
    output.table(wording.DISK_COLUMNS, map(wording.disk_row, found))
    if everything:
        rows = [row for disk in found for row in wording.disk_rows(disk)]
        click.echo()
        output.table(("node", "what", "size"), rows)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.as_json(found)
        return
    for line in wording.model_lines(found):
        click.echo(line)


def show_served(found: dict[str, Any], *, as_json: bool) -> None:
    """What is served from now on."""
    if as_json:
        output.as_json(found)
        return
    canary = f", {found['share']} of 100 requests by version {found['canary']}" if found["canary"] is not None else ""
    pinned = ", and stays" if found["pinned"] else ""
    click.echo(f"{found['model']}:{found['version']} is served{canary}{pinned}")
