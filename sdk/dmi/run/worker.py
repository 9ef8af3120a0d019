"""The worker's process: ``python -m dmi.run.worker``, a child of the daemon that runs the script of a job.

Its working directory holds the unpacked bundle. The script takes part in the job as soon as it calls ``dmi.init``.
"""

import os
import sys
from pathlib import Path

from dmi.errors import DmiError
from dmi.run import begin, exchange
from dmi.run.finish import finish
from dmi.run.mesh_exchange import MeshExchange
from dmi.run.script import Ending, run_script
from dmi_protocol.messages.roles import Bound, Completed, TrainingLaunch
from dmi_tensor.optimizers import warm_up
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from dmi_wire.memory import keep_freed_memory

_NO_PORT = 0
"""A worker connects and is never connected to; its endpoint needs the key only."""


def work(child: Child, launch: TrainingLaunch) -> Ending:
    """Follow the first roster, run the script, close the run, and stay until the job is over; returns what went wrong."""
    keys = KeyPair.make()
    child.tell(Bound(f"{launch.host}:{_NO_PORT}", keys.public, os.getpid()))
    mesh = MeshExchange(child, launch, child.roster(), keys)
    exchange.provide(lambda: mesh)
    os.environ[exchange.JOB] = launch.key.job  # for the processes that the script starts
    ending = run_script(Path.cwd() / launch.script, launch.args) or _close(launch.script)
    finish()
    if ending is not None:
        return ending
    child.tell(Completed())
    return mesh.stay()


def _close(script: str) -> Ending | None:
    found = begin.latest()
    if found is None:
        return Ending("no-run", f"{script} trains nothing: it needs dmi.init() and run.steps(...)")
    try:
        found.close()
    except DmiError as error:
        return Ending("script-raised", str(error))
    return None


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(TrainingLaunch)
    warm_up(launch.threads)  # before we are watched: it can stand still for long on a busy host
    child.start()
    keep_freed_memory()
    ending = work(child, launch)
    print(ending.text, file=sys.stderr, flush=True)
    child.fail(ending.kind, ending.text, starting=ending.kind == "cannot-start")


if __name__ == "__main__":
    main()
