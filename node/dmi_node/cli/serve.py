"""Verbs about serving."""

import click

from dmi.mesh import Mesh
from dmi_node.cli import output
from dmi_node.cli.models import show_served
from dmi_node.cli.options import SIZE, asks_mesh, share_options


def _replicas_of(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """A number, or auto."""
    if value is None or value == "auto":
        return value
    if value.isascii() and value.isdigit():
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a number nor auto", context, option)


@click.command(epilog="Example: dmi-node serve digits --replicas 3")
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="Which version; the newest by default.")
@click.option(
    "--replicas",
    metavar="N|auto",
    callback=_replicas_of,
    help="How many processes compute; two by default. auto follows the load; 0 sleeps until the first request.",
)
@click.option("--min", "least", type=click.IntRange(min=0), help="With --replicas auto: the fewest (1).")
@click.option("--max", "most", type=click.IntRange(min=1), help="With --replicas auto: the most (as many as nodes).")
@click.option(
    "--gateways", type=click.IntRange(min=1), help="How many nodes take requests in; all by default, up to 8."
)
@click.option("--max-batch", type=click.IntRange(min=1), default=32, show_default=True, help="Inputs computed at once.")
@click.option(
    "--max-wait-ms",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="How long a request may wait for others while every replica is busy.",
)
@click.option("--exact", is_flag=True, help="Compute each request alone: its bits depend on no neighbour.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Where gateways listen; from 8100 on by default.")
@click.option(
    "--cert", metavar="FILE", help="With --key: gateways speak TLS. Absolute, and on every host with a gateway."
)
@click.option("--key", metavar="FILE", help="The certificate's key.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="torch threads of a replica.")
@share_options("each replica")
@click.option("--follow", metavar="JOB", help="Take each version of it that this training publishes (run.publish).")
@click.option(
    "--every", type=click.IntRange(min=1), metavar="N", help="With --follow: each N-th checkpoint is a version, too."
)
@click.option(
    "--canary",
    type=click.IntRange(min=1),
    metavar="V",
    help="Of a model that is served: another version for some requests.",
)
@click.option(
    "--share", type=click.IntRange(0, 100), help="With --canary: of how many requests of a hundred (10); 0 ends it."
)
@click.option(
    "--memory-per-replica",
    metavar="SIZE",
    type=SIZE,
    help="Bytes of weights that a process may hold (200MB): a larger model is cut into stages on several nodes.",
)
@click.option("--detach", is_flag=True, help="Do not wait until it serves.")
@asks_mesh
def serve(
    mesh: Mesh,
    name: str,
    version: int | None,
    replicas: int | str | None,
    least: int | None,
    most: int | None,
    gateways: int | None,
    max_batch: int,
    max_wait_ms: int,
    exact: bool,
    port: int | None,
    cert: str | None,
    key: str | None,
    threads: int,
    cpus: int | None,
    memory: int | None,
    follow: str | None,
    every: int | None,
    canary: int | None,
    share: int | None,
    memory_per_replica: int | None,
    detach: bool,
    as_json: bool,
) -> None:
    """Serve the model NAME on the mesh; prints where its gateways are. It goes on until `dmi-node unserve NAME`.

    Every gateway speaks the Open Inference Protocol, version 2; GET /docs says how to ask.
    """
    if canary is not None or share is not None:
        _set_canary(mesh, name, canary, share, as_json=as_json)
        return
    deployment = mesh.serve(
        name,
        version=version,
        replicas=replicas,
        least=least,
        most=most,
        gateways=gateways,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        exact=exact,
        port=port,
        certificate=cert,
        certificate_key=key,
        threads=threads,
        cpus=cpus,
        memory=memory,
        follow=follow,
        every=every,
        memory_per_replica=memory_per_replica,
    )
    urls = deployment.urls() if detach else deployment.ready()
    if as_json:
        output.as_json({"model": deployment.model, "version": deployment.version, "urls": urls, "job": deployment.id})
        return
    click.echo(f"{deployment.model}:{deployment.version} is served" if urls else deployment.id)
    for url in urls:
        click.echo(url)


def _set_canary(mesh: Mesh, name: str, canary: int | None, share: int | None, *, as_json: bool) -> None:
    if canary is None and share != 0:
        raise click.UsageError("--share says for how many requests: --canary says which version they go to")
    show_served(
        mesh.models.canary(name, canary if share != 0 else None, 10 if share is None else share), as_json=as_json
    )


@click.command(epilog="Example: dmi-node unserve digits")
@click.argument("name")
@asks_mesh
def unserve(mesh: Mesh, name: str, as_json: bool) -> None:
    """Serve the model NAME no more. What is being computed is answered."""
    job = mesh.unserve(name)
    if as_json:
        output.as_json({"id": job, "model": name})
    else:
        click.echo(f"{name} is served no more")
