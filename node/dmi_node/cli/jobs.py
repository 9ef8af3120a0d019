"""Verbs about jobs."""

import sys
from pathlib import Path
from typing import Any

import click

from dmi.job import Job
from dmi.mesh import Mesh
from dmi_node.cli import output
from dmi_node.cli.options import asks_mesh


@click.command(epilog="Example: dmi-node submit train.py --workers 3 --wait -- --epochs 10")
@click.argument("script")
@click.argument("args", nargs=-1)
@click.option("--name", help="What to call the job; the script's name by default.")
@click.option("--workers", type=click.IntRange(min=1), help="How many nodes compute gradients; all by default.")
@click.option("--servers", type=click.IntRange(min=1), help="How many nodes hold shards; the workers' by default.")
@click.option("--backups", type=click.IntRange(min=0), default=0, help="Backups of each shard (not yet).")
@click.option("--leaves", type=click.IntRange(min=1), help="Micro-batches of a step; the script's choice by default.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="torch threads of a worker.")
@click.option("--include", multiple=True, metavar="PATH", help="A file or folder beside the script that it reads.")
@click.option("--wait", is_flag=True, help="Stay, show progress, and end with the job's result.")
@asks_mesh
def submit(
    mesh: Mesh,
    script: str,
    args: tuple[str, ...],
    name: str | None,
    workers: int | None,
    servers: int | None,
    backups: int,
    leaves: int | None,
    threads: int,
    include: tuple[str, ...],
    wait: bool,
    as_json: bool,
) -> None:
    """Train SCRIPT on the mesh, with ARGS after `--`. Prints the job's id once the job is safe."""
    job = mesh.submit(
        script,
        args,
        name=name,
        workers=workers,
        servers=servers,
        backups=backups,
        leaves=leaves,
        threads=threads,
        include=include,
    )
    if as_json:
        output.as_json({"id": job.id})
    else:
        click.echo(job.id)
    if wait:
        _wait(mesh, job)


def _wait(mesh: Mesh, job: Job) -> None:
    last: dict[str, Any] = {}
    if sys.stdout.isatty():
        last = _live(mesh, job)
    else:
        for last in job.events():
            click.echo(_line(last), err=True)
    if last.get("state") != "succeeded":
        why = job.why()
        if why["detail"]:
            click.echo(why["detail"], err=True)
        output.end(f"{job.id}: {why['sentence']}", output.UNHEALTHY)
    click.echo(f"{job.id}: {job.why()['sentence']}", err=True)


def _line(job: dict[str, Any]) -> str:
    speed, loss = output.number(job["samples_per_second"], 0), output.number(job["loss"], 4)
    return f"{job['state']}: step {output.progress_of(job)}, {speed} samples/s, loss {loss}"


def _live(mesh: Mesh, job: Job) -> dict[str, Any]:
    from rich.console import Group  # only a terminal needs it
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn

    last: dict[str, Any] = {}
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    task = bar.add_task(job.id, total=None, text="")
    roles: list[list[str]] = []
    with Live(bar, refresh_per_second=5) as live:
        for last in job.events():
            if not roles and last["state"] == "running":
                found = [role for role in mesh.roles() if role["job"] == job.id]
                roles = [[f"{r['role']}-{r['index']}", r["node"], str(r["pid"])] for r in found]
            bar.update(task, total=last["steps"], completed=last["step"] or 0, text=_line(last))
            live.update(Group(bar, output.draw(("role", "node", "pid"), roles)))
    return last


@click.command(epilog="Example: dmi-node jobs --json")
@asks_mesh
def jobs(mesh: Mesh, as_json: bool) -> None:
    """The jobs of the mesh, oldest first."""
    found = mesh.jobs()
    if as_json:
        output.as_json(found)
    else:
        output.table(output.JOB_COLUMNS, map(output.job_row, found))


@click.command(epilog="Example: dmi-node logs digits -f")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Stay until the job has ended.")
@asks_mesh
def logs(mesh: Mesh, job: str, follow: bool, as_json: bool) -> None:
    """What JOB (id, unique beginning of it, or name) has printed, each line with its process."""
    for process, line in mesh.job(job).logs(follow=follow):
        if as_json:
            output.as_json({"worker": process, "line": line})
        else:
            click.echo(f"{process}: {line}")


@click.command(epilog="Example: dmi-node why digits")
@click.argument("job")
@asks_mesh
def why(mesh: Mesh, job: str, as_json: bool) -> None:
    """Why JOB is in its state; a script's own traceback when that is the reason."""
    found = mesh.job(job).why()
    if as_json:
        output.as_json(found)
        return
    click.echo(f"{found['job']} is {found['state']}: {found['sentence']}")
    if found["detail"]:
        click.echo(f"\n{found['detail'].rstrip()}")


@click.command(epilog="Example: dmi-node cancel digits")
@click.argument("job")
@asks_mesh
def cancel(mesh: Mesh, job: str, as_json: bool) -> None:
    """End JOB, whatever it is doing."""
    found = mesh.job(job)
    found.cancel()
    if as_json:
        output.as_json({"id": found.id, "state": "cancelled"})
    else:
        click.echo(f"{found.id} is cancelled")


@click.command(epilog="Example: dmi-node export digits digits.safetensors")
@click.argument("job")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@asks_mesh
def export(mesh: Mesh, job: str, path: Path, as_json: bool) -> None:
    """Write the model that JOB trained: safetensors, or with a .pt suffix a torch file with the optimizer's state."""
    found = mesh.job(job)
    found.export(path)
    if as_json:
        output.as_json({"id": found.id, "path": str(path)})
    else:
        click.echo(f"wrote {path}")
