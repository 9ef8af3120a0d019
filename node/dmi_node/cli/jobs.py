"""Verbs about jobs."""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dmi.job import ENDED, Job
from dmi.mesh import Mesh
from dmi_node.cli import live, output, wording
from dmi_node.cli.options import asks_mesh, share_options

_LINE_S = 1.0


class _Submit(click.Command):
    """What stands before ``--`` is ours, and what stands after it the script's: who mixes them up is told."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises ``click.UsageError`` that names ``--``."""
        ours = args[: args.index("--")] if "--" in args else list(args)
        try:
            rest = super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            script = next((each for each in ours if each.endswith(".py")), "SCRIPT")
            raise click.UsageError(
                f"submit has no option {error.option_name}; if it is the script's, write it after `--`: dmi-node submit {script} "
                f"-- {error.option_name} ..."
            ) from None
        given = ctx.params.get("script")
        if given in ours:
            _demand_clear(Path(given), ours[ours.index(given) + 1 :])
        return rest


def _demand_clear(script: Path, behind: list[str]) -> None:
    """An option that both of us have, behind the script's name: whose is it?"""
    try:
        text = script.read_text(errors="replace")
    except OSError:
        return
    for option in (each.partition("=")[0] for each in behind if each.startswith("--")):
        if re.search(rf"add_argument\([^)]*[\"']{re.escape(option)}[\"']", text):
            raise click.UsageError(
                f"{option} is an option of submit and of {script.name}: write it before {script.name} for submit, and after `--` "
                "for the script"
            )


def _variables(_: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, has_value, value = each.partition("=")
        if not has_value and name not in os.environ:
            raise click.BadParameter(f"{name} is not set here: write {name}=VALUE", param=option)
        found[name] = value if has_value else os.environ[name]
    return found


@click.command(cls=_Submit, epilog="Example: dmi-node submit train.py --workers 3 --wait -- --epochs 10")
@click.argument("script")
@click.argument("args", nargs=-1)
@click.option("--name", help="What to call the job; the script's name by default.")
@click.option("--workers", type=click.IntRange(min=1), help="How many nodes compute gradients; all by default.")
@click.option("--servers", type=click.IntRange(min=1), help="How many nodes hold shards; the workers' by default.")
@click.option(
    "--backups", type=click.IntRange(min=0), help="Backups of each shard; 1 by default, where there are two nodes."
)
@click.option("--leaves", type=click.IntRange(min=1), help="Micro-batches of a step; the script's choice by default.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="torch threads of a worker.")
@share_options("the job on each of its nodes")
@click.option("--include", multiple=True, metavar="PATH", help="A file or folder beside the script that it reads.")
@click.option(
    "--root",
    metavar="DIR",
    help="A folder above the script that travels with it, and from which it imports, too. Of folders, repositories (.git), "
    "virtual environments and caches stay at home.",
)
@click.option(
    "--env",
    multiple=True,
    metavar="NAME[=VALUE]",
    callback=_variables,
    help="A variable for the script; without a value the one that it has here.",
)
@click.option("--python", metavar="PATH", help="The interpreter that runs the script on each host; it must have dmi.")
@click.option("--wait", is_flag=True, help="Stay, show progress, and end with the job's result.")
@asks_mesh
def submit(
    mesh: Mesh,
    script: str,
    args: tuple[str, ...],
    name: str | None,
    workers: int | None,
    servers: int | None,
    backups: int | None,
    leaves: int | None,
    threads: int,
    cpus: int | None,
    memory: int | None,
    include: tuple[str, ...],
    root: str | None,
    env: dict[str, str],
    python: str | None,
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
        cpus=cpus,
        memory=memory,
        include=include,
        root=root,
        env=env,
        python=python,
    )
    if job.left_at_home:
        click.echo(f"left at home: {', '.join(job.left_at_home[:8])}", err=True)
    if as_json:
        output.as_json({"id": job.id})
    else:
        click.echo(job.id)
    if wait:
        _wait(mesh, job)


def _wait(mesh: Mesh, job: Job) -> None:
    """Progress is told on standard error, so that standard output has the job's id and nothing else."""
    try:
        last = _live(mesh, job) if sys.stderr.isatty() else _lines(job)
    except KeyboardInterrupt:
        output.end(
            f"{job.id} goes on: `dmi-node logs {job.id} -f` follows it, `dmi-node cancel` ends it", output.UNHEALTHY
        )
    why = job.why()
    if last.get("state") != "succeeded":
        if why["detail"]:
            click.echo(why["detail"], err=True)
        output.end(f"{job.id}: {why['sentence']}", output.UNHEALTHY)
    click.echo(f"{job.id}: {why['sentence']}", err=True)


def _lines(job: Job) -> dict[str, Any]:
    """A line when the state is another one, and otherwise every second."""
    last: dict[str, Any] = {}
    state, said_at = None, 0.0
    for last in job.events():
        if last["state"] != state or time.monotonic() - said_at >= _LINE_S:
            state, said_at = last["state"], time.monotonic()
            click.echo(wording.line_of(last, with_reason=True), err=True)
    return last


def _live(mesh: Mesh, job: Job) -> dict[str, Any]:
    console = live.terminal(sys.stderr)
    if console is None:
        return _lines(job)
    last: dict[str, Any] = {}

    def pictures() -> Iterator[Any]:
        for seen in mesh.watch():
            found = next((each for each in seen["jobs"] if each["id"] == job.id), None)
            if found is not None:
                last.update(found)
                yield live.of_job(found, seen, _why(job, found))
            if found["state"] in ENDED if found is not None else last:
                return

    live.show(pictures(), console)
    return last


def _why(job: Job, seen: dict[str, Any]) -> str:
    """Why a job that should run does not; nothing for one that does, or has ended: its end is told below."""
    return "" if seen["state"] == "running" or seen["state"] in ENDED else str(job.why()["sentence"])


@click.command(epilog="Example: dmi-node jobs --json")
@asks_mesh
def jobs(mesh: Mesh, as_json: bool) -> None:
    """The jobs of the mesh, oldest first."""
    found = mesh.jobs()
    if as_json:
        output.as_json(found)
    else:
        output.jobs(found)


@click.command(epilog="Example: dmi-node logs digits -f")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Stay until the job has ended.")
@click.option("--worker", metavar="NAME", help="Lines of one process only: worker-0, server-2, or worker-0@n1.")
@asks_mesh
def logs(mesh: Mesh, job: str, follow: bool, worker: str | None, as_json: bool) -> None:
    """What JOB (id, unique beginning of it, or name) has printed, each line with its process."""
    others: set[str] = set()
    something = False
    for process, line in mesh.job(job).logs(follow=follow):
        is_away = "@" not in process  # a node's, whose lines are missing
        if not is_away and worker is not None and worker not in {process, process.partition("@")[0]}:
            others.add(process)
            continue
        something = something or not is_away
        if as_json:
            output.as_json({"worker": process, "line": line})
        else:
            click.echo(f"{process}: {line}", err=is_away)
    if worker is not None and not something:
        printed = ", ".join(sorted(others)) or "nobody"
        output.end(f"{worker!r} has printed nothing in {job}; who has: {printed}", output.UNHEALTHY)


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


@click.command(epilog="Example: dmi-node rm digits")
@click.argument("job")
@asks_mesh
def rm(mesh: Mesh, job: str, as_json: bool) -> None:
    """Forget JOB, which has ended: its checkpoints and results are freed on every node."""
    found = mesh.job(job)
    found.remove()
    if as_json:
        output.as_json({"removed": found.id})
    else:
        click.echo(f"{found.id} is removed")


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
