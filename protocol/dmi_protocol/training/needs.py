"""What a training will need of each role: from its layout and its assignment alone, told before the first step."""

from math import ceil, log2

from msgspec import Struct

from dmi_protocol.messages.roles import Assignment
from dmi_protocol.training.layout import Definition, Layout
from dmi_protocol.training.step import cover
from dmi_protocol.training.tree import shares


class Needs(Struct, frozen=True):
    """Bytes, beside what torch itself takes, the data, and what the model keeps between its layers.

    ``P`` are the bytes of all that changes, ``S`` the shards, ``K`` the backups, ``m`` the tensors that the optimizer keeps
    for each parameter, ``L`` the most leaves of a worker, ``W`` the workers.
    """

    parameters: int
    parameter_bytes: int
    worker_bytes: int
    """``P * (4 + s)``: parameters, gradients, the next version as it comes, sums that are kept for whoever asks again, and
    ``s = 1 + ceil(log2 L)`` leaf sums."""
    server_bytes: int
    """``P / S * ((1 + K) * (2 + m) + 2 W + 2 (1 + m))``: two versions and the optimizer's state of each copy, sums that are
    gathered and those that wait in the socket, and a checkpoint in memory and on its way to the disk."""
    step_bytes: int
    """``P * (c + 1)``: a worker's ``c`` partial sums out, and the next version in; what its own host serves moves no byte."""


def needs(definition: Definition, layout: Layout, assignment: Assignment, kept: int) -> Needs:
    """Of a training with this assignment; ``kept`` is ``m``."""
    live = sum(bucket.length_bytes for bucket in layout.buckets[: layout.live])
    count = sum(_size(parameter.shape) for parameter in definition.parameters)
    runs = [run for run in shares(assignment.speeds, definition.leaves) if run]
    leaves, pushes = max(map(len, runs)), max(len(cover(run)) for run in runs)
    shard = live / len(assignment.shards)
    copies = max(len(replicas.in_sync) + len(replicas.filling) for replicas in assignment.shards)
    server = shard * (copies * (2 + kept) + 2 * len(runs) + 2 * (1 + kept))
    worker = live * (5 + ceil(log2(leaves)))
    return Needs(count, live, round(worker), round(server), live * (pushes + 1))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def told(found: Needs, workers: int, servers: int) -> str:
    """One line for people."""
    return (
        f"{found.parameters:,} parameters ({_amount(found.parameter_bytes)}); beside torch and the data each of {workers} "
        f"workers needs about {_amount(found.worker_bytes)} of memory and each of {servers} servers about "
        f"{_amount(found.server_bytes)}; a step moves at most {_amount(found.step_bytes)} to and from a worker"
    )


def _amount(size: int) -> str:
    for unit, limit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size} B"
