"""A whole mesh on this machine: for trying, developing and testing. Killing one of its nodes is like killing a host."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import psutil

from dmi.connection import SERVICE_HOME, Connection, default_home, user_home
from dmi.errors import DmiError, UsageError
from dmi.mesh import Mesh
from dmi_node.cli import founded, output, secrets
from dmi_node.cli.options import home, home_option, json_option, telling
from dmi_node.home import owner_of
from dmi_node.storage.journal import JournalError

_READY_S = 30.0
_DOWN_S = 15.0
_STEP_S = 0.02


@click.command(epilog="Example: dmi-node up --nodes 3 --detach")
@home_option
@json_option
@click.option("--nodes", type=click.IntRange(1, 100), default=3, show_default=True, help="How many.")
@click.option("--detach", is_flag=True, help="Leave it running; `dmi-node down` ends it.")
def up(nodes: int, detach: bool, as_json: bool) -> None:
    """Start a mesh of NODES nodes on this machine, each with its own home, key, address and port.

    Their homes are DIR/n0, DIR/n1, ...; DIR is --home, or DMI_HOME, or ~/.local/state/dmi-node, and never the home of
    this host's service. Where a service runs, say --home DIR to the other verbs, too: they ask the service by default.
    """
    with telling():
        root = _root()
        started = _start(root, nodes)
        if as_json:
            output.as_json({"home": str(root), "nodes": [f"n{index}" for index in range(nodes)]})
        else:
            click.echo(
                f"{nodes} nodes are up under {root}; `dmi-node down --home {root}` ends them{_beside_a_service(root)}"
            )
    if detach:
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # a script that starts us with `&` has us ignore the first
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # the terminal is closed, and nobody said `nohup`
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        for child in started:
            child.wait()
    except KeyboardInterrupt:
        _end(root)


def _root() -> Path:
    """Where the mesh of this machine lives. Raises ``UsageError`` rather than touch the service's home."""
    named = home() or os.environ.get("DMI_HOME")
    with telling():
        root = Path(named).absolute() if named else user_home()
    if root.resolve().is_relative_to(SERVICE_HOME.resolve()):
        raise UsageError(
            f"{root} belongs to this host's service, not to a mesh of `up`: use another --home, or systemctl"
        )
    return root


def _beside_a_service(root: Path) -> str:
    """What to know where other verbs would not find this mesh by themselves."""
    if home() or default_home() == root:
        return ""
    return f"; other verbs ask this host's service unless they get --home {root}"


def _start(root: Path, nodes: int) -> list[subprocess.Popen[bytes]]:
    """Homes that exist are started again as they were; new ones are invited by the first."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    homes = [root / f"n{index}" for index in range(nodes)]
    if any(owner_of(path) for path in homes):
        raise DmiError(f"a mesh is already up under {root}: `dmi-node down --home {root}` ends it")
    try:
        wrong = founded.why_not(root, homes)
    except (JournalError, OSError) as error:
        raise DmiError(f"the mesh under {root} cannot be started: {error}") from error
    if wrong is not None:
        raise DmiError(wrong)
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        _start_all(homes, children)
    except BaseException:  # a mesh that did not come up, or Ctrl-C meanwhile, leaves nothing running
        _end_children(list(children.values()))
        raise
    return list(children.values())


def _start_all(homes: list[Path], children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Every process goes into ``children`` under its node's name as soon as it runs."""
    children["n0"] = _spawn(homes[0], 0)
    for index, path in enumerate(homes):
        if index and founded.is_member(path):
            children[path.name] = _spawn(path, index)
    first = Mesh(Connection(homes[0]))
    _until(lambda: first.status()["quorum"], children)
    for index, path in enumerate(homes):
        if path.name not in children:
            children[path.name] = _spawn(path, index, first.invite()["token"])
    for path in homes:
        _until(partial(_is_whole, path, len(homes)), children)


def _end_children(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    end = time.monotonic() + _DOWN_S
    for child in children:
        try:
            child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _is_whole(path: Path, nodes: int) -> bool:
    seen = Mesh(Connection(path)).status()
    alive = [member for member in seen["members"] if member["state"] == "alive" and member["pid"] is not None]
    return bool(seen["quorum"]) and len(alive) >= nodes


def _spawn(path: Path, index: int, token: str | None = None) -> subprocess.Popen[bytes]:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    arguments = [sys.executable, "-m", "dmi_node", "run", "--home", str(path)]
    if not founded.is_member(path):
        arguments += ["--name", f"n{index}", "--listen", f"127.0.{1 + index // 250}.{1 + index % 250}:0"]
    kept = {n: value for n, value in os.environ.items() if not n.startswith("DMI_") or n == "DMI_LOG_LEVEL"}
    with (path / "daemon.log").open("ab") as log:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=kept if token is None else {**kept, secrets.VARIABLE: token},
        )


def _until(happened: Callable[[], bool], children: dict[str, subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        try:
            if happened():
                return
        except DmiError:
            pass  # not yet; the deadline decides
        for name, child in children.items():
            if child.poll() not in {None, 0}:
                raise DmiError(f"{name} ended with code {child.returncode}: see its daemon.log")
        time.sleep(_STEP_S)
    raise DmiError(f"the mesh was not ready within {_READY_S:g} s: see the nodes' daemon.log")


@click.command(epilog="Example: dmi-node down")
@home_option
@json_option
def down(as_json: bool) -> None:
    """End every node under the home, in good order; what does not end in time is killed.

    The home is that of `up`: --home, or DMI_HOME, or ~/.local/state/dmi-node, and never that of this host's service.
    """
    with telling():
        root = _root()
    ended = _end(root)
    if as_json:
        output.as_json({"ended": ended})
    else:
        click.echo(f"{len(ended)} nodes ended" if ended else f"no node runs under {root}")


def _end(root: Path) -> list[str]:
    homes = [path for path in [root, *sorted(root.glob("n*"))] if (path / "pid").exists()]
    running = {path: pid for path in homes if (pid := owner_of(path)) is not None}
    families = {
        path: [process, *process.children(recursive=True)]
        for path, pid in running.items()
        if (process := _process(pid)) is not None
    }
    for family in families.values():
        _signal(family[0], signal.SIGTERM)
    everybody = [process for family in families.values() for process in family]
    for process in _outlived(everybody):
        _signal(process, signal.SIGKILL)
    _outlived(everybody)
    return [path.name for path in families]


def _outlived(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run when their time is over. One that has ended and was not waited for by its parent runs no more."""
    end = time.monotonic() + _DOWN_S
    while (running := [process for process in processes if _runs(process)]) and time.monotonic() < end:
        time.sleep(_STEP_S)
    return running


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _signal(process: psutil.Process, number: int) -> None:
    """psutil checks that the process is still the same one."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
