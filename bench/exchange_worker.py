"""A worker of the measurement: steps that are only their exchange, with gradients that cost nothing."""

import json
import os
import resource
import time
from inspect import signature
from pathlib import Path

import torch

from dmi.run.exchange import Begun
from dmi.run.mesh_exchange import MeshExchange
from dmi_protocol.messages.roles import Bound, Completed, TrainingLaunch
from dmi_protocol.training.layout import Definition, ParameterSpec, lay_out
from dmi_protocol.training.tree import leaf_sizes
from dmi_tensor.buckets import Buckets
from dmi_tensor.optimizers import hyperparameters
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from dmi_wire.memory import keep_freed_memory

_LAYERS = 25


def definition_of(parameters: int, leaves: int) -> Definition:
    """A model of 25 equal layers."""
    names = tuple(f"layer.{index}" for index in range(_LAYERS))
    specs = tuple(ParameterSpec(name, (parameters // _LAYERS,), "float32", 0) for name in names)
    return Definition(specs, (), (names,), "SGD", whole=False, leaves=leaves, clip_norm=None)


def measure(exchange: MeshExchange, parameters: int, leaves: int, steps: int) -> list[float]:
    """Seconds of each step: push, sum, SGD with momentum, pull, install."""
    layout = lay_out(definition_of(parameters, leaves))
    buckets = Buckets(layout)
    some = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01, momentum=0.9)
    hyper = hyperparameters(some)
    step = exchange.open(definition_of(parameters, leaves), buckets, [], 1)
    gradient = torch.full((max(bucket.length for bucket in layout.buckets),), 1.0)
    seconds = []
    while step < steps:
        exchange.begin(Begun(step, leaf_sizes(leaves, leaves), hyper), bytes)
        start = time.perf_counter()
        while (leaf := exchange.next_leaf()) is not None:
            shares = {}
            for bucket in layout.buckets[: layout.metrics]:
                share = exchange.take(bucket.index)
                assert share.tensor is not None
                share.tensor.copy_(gradient[: bucket.length])
                share.weights[:] = [1.0 / leaves] * len(bucket.segments)
                shares[bucket.index] = share
            exchange.contribute(leaf, shares)
        exchange.install()
        step += 1
        seconds.append(time.perf_counter() - start)
    nothing = (step, b"", ())
    exchange.close(*nothing[: len(signature(exchange.close).parameters)])  # an older commit's takes less
    return seconds


def main() -> None:
    """The process: ``script`` of the assignment is where the result goes, ``args`` are parameters, leaves, steps."""
    torch.set_num_threads(1)
    child = Child.inherit()
    launch = child.launch(TrainingLaunch)
    child.start()
    keep_freed_memory()
    keys = KeyPair.make()
    child.tell(Bound(f"{launch.host}:0", keys.public, os.getpid()))
    exchange = MeshExchange(child, launch, child.roster(), keys)
    seconds = measure(exchange, *map(int, launch.args))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (Path(launch.directory) / "seconds.json").write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}))
    child.tell(Completed())
    exchange.stay()


if __name__ == "__main__":
    main()
