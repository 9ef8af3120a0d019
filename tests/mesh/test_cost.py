"""What a daemon costs while nothing happens, and how soon it is ready."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import pytest

from tests.mesh.local import BIN, LocalMesh, clean_environment, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

MakeMesh = Callable[[int], LocalMesh]
IDLE_SECONDS = 20


@pytest.mark.deep
def test_an_idle_mesh_of_five_is_nearly_free(five: LocalMesh) -> None:
    """Under 2% of a core on the coordinator, 1% elsewhere, 60 MB, and no torch, rich or numpy in any daemon."""
    until(lambda: sum(member["voter"] for member in five.status()["members"]) == 5, 30, "five voters")
    leader = five.status()["coordinator"]
    daemons = {f"n{index}": psutil.Process(five.pid(index)) for index in range(5)}
    threading.Event().wait(
        3
    )  # what the status command woke up settles; the measurement follows, nothing is ordered by it
    before = {name: sum(daemon.cpu_times()[:2]) for name, daemon in daemons.items()}
    start = time.monotonic()
    threading.Event().wait(IDLE_SECONDS)
    elapsed = time.monotonic() - start
    cores = {name: (sum(d.cpu_times()[:2]) - before[name]) / elapsed for name, d in daemons.items()}
    resident = {name: d.memory_info().rss / 1e6 for name, d in daemons.items()}
    print(f"\ncoordinator {leader}; cores { ({n: f'{c:.2%}' for n, c in cores.items()}) }")
    print(f"resident { ({n: f'{r:.0f} MB' for n, r in resident.items()}) }")
    assert cores.pop(leader) < 0.02
    assert median(cores.values()) < 0.01
    assert max(resident.values()) <= 60
    for daemon in daemons.values():
        mapped = {Path(m.path).name for m in daemon.memory_maps() if m.path.endswith(".so")}
        assert not {name for name in mapped if name.startswith(("libtorch", "_multiarray"))}


def test_a_node_is_ready_half_a_second_after_its_start(tmp_path: Path) -> None:
    """The time until READY=1 reaches the socket that systemd would give."""
    times = []
    for attempt in range(5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = tmp_path / f"notify{attempt}"
            notify.bind(str(path))
            notify.settimeout(20)
            start = time.monotonic()
            with subprocess.Popen(
                [BIN / "dmi-node", "run", "--home", tmp_path / f"home{attempt}", "--listen", "127.0.0.1:0"],
                env=clean_environment(NOTIFY_SOCKET=str(path)),
            ) as node:
                while b"READY=1" not in notify.recv(4096):
                    continue
                times.append(time.monotonic() - start)
                node.terminate()
                assert node.wait(timeout=20) == 0
    print(f"\nready after {json.dumps([round(t, 3) for t in times])} s, median {median(times):.3f}")
    assert median(times) < 0.5


def all_alive(mesh: LocalMesh) -> bool:
    return [member["state"] for member in mesh.status()["members"]] == ["alive"] * 3


@pytest.mark.deep
def test_three_nodes_are_ready_within_three_seconds(tmp_path: Path) -> None:
    times = []
    for attempt in range(3):
        mesh = LocalMesh(tmp_path / f"mesh{attempt}", 3)
        start = time.monotonic()
        mesh.up()
        times.append(time.monotonic() - start)
        try:
            until(partial(all_alive, mesh), 5, "three nodes are alive")
        finally:
            mesh.close()
    print(f"\nup --nodes 3 after {json.dumps([round(t, 2) for t in times])} s, median {median(times):.2f}")
    assert median(times) < 3.0
