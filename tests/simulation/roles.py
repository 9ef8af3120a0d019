"""Role processes come to life."""

from dmi_protocol.messages.roles import (
    BatchLaunch,
    Bound,
    GatewayLaunch,
    Launch,
    ReplicaLaunch,
    Started,
    TrainingLaunch,
)
from tests.simulation.clock import Clock
from tests.simulation.node import Node
from tests.simulation.process import Process, tell_daemon
from tests.simulation.replica import ScriptedReplica
from tests.simulation.server import Server
from tests.simulation.serving import ScriptedGateway, ServingReplica
from tests.simulation.sockets import Sockets
from tests.simulation.worker import ScriptedWorker


def spawn(sockets: Sockets, node: Node, launch: Launch) -> Process:
    """A new process, which will be bound a little later."""
    process = _made(sockets, node, launch)
    sockets.processes[process.public_key] = sockets.holders[launch.key] = process
    clock = sockets.clock
    tell_daemon(process, clock, Started(1))
    slowest = clock.random.choice([50, 50, 500, 4_000])  # some import torch on a busy host
    clock.later(5 + int(slowest * clock.random.random()), _bind, process, clock)
    return process


def _made(sockets: Sockets, node: Node, launch: Launch) -> Process:
    if isinstance(launch, BatchLaunch):
        return ScriptedReplica(sockets, node, launch)
    if isinstance(launch, ReplicaLaunch):
        return ServingReplica(sockets, node, launch)
    if isinstance(launch, GatewayLaunch):
        return ScriptedGateway(sockets, node, launch)
    assert isinstance(launch, TrainingLaunch)
    return Server(sockets, node, launch) if launch.key.role == "server" else ScriptedWorker(sockets, node, launch)


def _bind(process: Process, clock: Clock) -> None:
    if process.is_alive:
        where = f"{process.key.role}-{process.key.index}.{process.node.name}:1"
        tell_daemon(process, clock, Bound(where, process.public_key, 1))
