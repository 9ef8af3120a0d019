"""The verb of batch inference."""

import json
import sys
import time
from typing import Any

import click

from dmi.errors import UsageError
from dmi.infer.client import Inference
from dmi.job import ENDED
from dmi.mesh import Mesh
from dmi_node.cli import output, wording
from dmi_node.cli.options import asks_mesh, share_options

_LINE_S = 1.0


@click.command(epilog="Example: dmi-node infer digits.json --out results")
@click.argument("config")
@click.option("--out", metavar="DIR", help="Where results.jsonl and manifest.json go; it must not exist.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes compute; all by default.")
@share_options("each replica")
@click.option("--resume", is_flag=True, help="Go on with what this configuration began in --out.")
@click.option("--detach", is_flag=True, help="Print the job's id and leave; --resume writes the results later.")
@click.option("--strict", is_flag=True, help="End with 1 when an input failed.")
@click.option("--dry-run", is_flag=True, help="Say what would be read, and compute the first batch.")
@asks_mesh
def infer(
    mesh: Mesh,
    config: str,
    out: str | None,
    nodes: int | None,
    cpus: int | None,
    memory: int | None,
    resume: bool,
    detach: bool,
    strict: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compute the inputs that CONFIG names with a model of the mesh: one result for each, in their order."""
    if dry_run:
        _dry_run(mesh, config, as_json=as_json)
        return
    if out is None:
        raise UsageError("say where the results go: --out DIR")
    inference = mesh.infer(config, out, nodes=nodes, cpus=cpus, memory=memory, resume=resume)
    if detach:
        output.as_json({"id": inference.id}) if as_json else click.echo(inference.id)
        return
    manifest = _follow(inference)
    if as_json:
        output.as_json(manifest)
    else:
        click.echo(wording.inferred(manifest, str(inference.results)))
    if strict and manifest["failed"]:
        sys.exit(output.UNHEALTHY)


def _follow(inference: Inference) -> dict[str, Any]:
    """Progress on standard error, until the results are written."""
    begun = said_at = time.monotonic()
    last: dict[str, Any] = {}
    before: int | None = None
    try:
        for last in inference.progress():
            now = time.monotonic()
            before = last["step"] if before is None else before
            if now - said_at >= _LINE_S and last["state"] not in ENDED:
                said_at = now
                click.echo(wording.inferring(last, before, now - begun), err=True)
        inference.judge(last)
        return inference.collect()
    except KeyboardInterrupt:
        output.end(
            f"{inference.id} goes on: the same command with --resume follows it, `dmi-node cancel {inference.id}` ends it",
            output.UNHEALTHY,
        )


def _dry_run(mesh: Mesh, config: str, *, as_json: bool) -> None:
    found = mesh.dry_run(config)
    if as_json:
        output.as_json(found)
        return
    click.echo(
        f"{found['inputs']:,} inputs of {found['path']} in {found['batches']:,} batches and {found['slices']:,} slices; "
        "the first batch:"
    )
    for row in found["rows"]:
        click.echo(json.dumps(row))
