"""Requests a second and their times: one gateway and one replica of a mesh on this machine, beside the model called in process,
beside a bare uvicorn and starlette app that calls the model in its own process, and beside Ray Serve with ``@serve.batch``.

``python -m bench.serving`` prints medians and ratios. For the peers name the Pythons of environments that have them and torch:
``--starlette PYTHON`` (uvicorn, starlette, uvloop, httptools) and ``--ray PYTHON`` (``ray[serve]``). All servers are asked by the
same load generator, one after another, in every repeat.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dmi
from bench.serving_net import SHAPES, body_plain, body_v2, make, values
from tests.mesh.local import LocalMesh, clean_environment

NETS = ("dense", "conv")
MANY = 64
ADDED_MS, BATCHING, RAY_P50, RAY_SPEED, STARLETTE_SPEED = 1.5, 3.0, 0.4, 3.0, 1.5
_HERE = Path(__file__).parent
Found = dict[str, Any]


def exported(name: str, path: Path) -> Path:
    """The net as an exported program."""
    rows = torch.export.Dim("rows", min=1, max=1024)
    given = torch.zeros(2, *SHAPES[name])
    torch.export.save(torch.export.export(make(name), (given,), dynamic_shapes=({0: rows},)), path)
    return path


def in_process(name: str) -> float:
    """Milliseconds of one call of the model for one input, the median."""
    torch.set_num_threads(1)
    net, given = make(name), torch.tensor(values(name)).reshape(1, *SHAPES[name])
    times = []
    with torch.inference_mode():
        for _ in range(2_000):
            began = time.perf_counter()
            net(given)
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def load(url: str, body: bytes, connections: int, seconds: float) -> Found:
    """What the load generator says."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        done = subprocess.run(
            [sys.executable, _HERE / "serving_load.py", url, file.name, str(connections), str(seconds)],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=True,
        )
    found: Found = json.loads(done.stdout)
    assert not found["failed"], f"{found['failed']} requests failed at {url}"
    return found


@contextmanager
def peer(python: str, script: str, *arguments: object) -> Iterator[str]:
    """A server of ours in another environment; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    net, *more = arguments
    child = subprocess.Popen(
        [python, _HERE / script, str(net), str(port), *map(str, more)],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}/infer"
        _until_ready(url, body_plain(str(net)), child)
        yield url
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def _until_ready(url: str, body: bytes, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert child.poll() is None, f"{child.args} has ended"
        try:
            load(url, body, 1, 0.2)
        except (subprocess.CalledProcessError, AssertionError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{child.args} is not ready")


def ours(mesh: Any, name: str, max_batch: int) -> Callable[[], str]:
    """Serve the net anew; gives its address when it serves."""

    def begin() -> str:
        for each in mesh.deployments():
            mesh.unserve(each["model"])
        deployment = mesh.serve(name, replicas=1, gateways=1, max_batch=max_batch)
        return f"{deployment.ready()[0]}/v2/models/{name}/infer"

    return begin


def measure(repeats: int, seconds: float, starlette: str | None, ray: str | None, folder: Path) -> None:
    """All of it, printed."""
    local = LocalMesh(folder / "mesh", 1)
    local.up()
    try:
        mesh = dmi.connect(local.node(0))
        for name in NETS:
            mesh.models.add(name, exported(name, folder / f"{name}.pt2"))
            rounds = [_round(mesh, name, seconds, starlette, ray) for _ in range(repeats)]
            _print(name, {key: statistics.median(each[key] for each in rounds) for key in rounds[0]})
    finally:
        local.close()


def _round(mesh: Any, name: str, seconds: float, starlette: str | None, ray: str | None) -> dict[str, float]:
    found = {"model p50": in_process(name)}

    def both(who: str, url: str, body: bytes) -> None:
        one, many = load(url, body, 1, seconds), load(url, body, MANY, seconds)
        found[f"{who} p50"] = one["p50_ms"]
        found[f"{who} p50 of {MANY}"] = many["p50_ms"]
        found[f"{who} speed"] = many["requests_per_second"]

    both("dmi", ours(mesh, name, 32)(), body_v2(name))
    both("dmi by one", ours(mesh, name, 1)(), body_v2(name))
    mesh.unserve(name)
    if starlette:
        with peer(starlette, "serving_starlette.py", name) as url:
            both("starlette", url, body_plain(name))
    if ray:
        with peer(ray, "serving_ray.py", name, 32) as url:
            both("ray", url, body_plain(name))
    return found


def _print(name: str, found: dict[str, float]) -> None:
    for key, value in found.items():
        print(f"{name:6} {key:24} {value:10,.2f} {'requests/s' if key.endswith('speed') else 'ms'}")

    def ratio(what: str, value: float, *, most: float | None = None, least: float | None = None) -> None:
        wanted = f"at most {most}" if most is not None else f"at least {least}"
        is_met = value <= most if most is not None else value >= (least or 0)
        print(f"{name:6} {what}: {value:.2f} ({wanted}: {'met' if is_met else 'MISSED'})")

    ratio("added to the model, p50 in ms", found["dmi p50"] - found["model p50"], most=ADDED_MS)
    ratio("batches against one at a time, speed", found["dmi speed"] / found["dmi by one speed"], least=BATCHING)
    if "starlette speed" in found:
        ratio("against starlette, speed", found["dmi speed"] / found["starlette speed"], least=STARLETTE_SPEED)
    if "ray speed" in found:
        ratio("against Ray Serve, speed", found["dmi speed"] / found["ray speed"], least=RAY_SPEED)
        ratio("against Ray Serve, p50", found["dmi p50"] / found["ray p50"], most=RAY_P50)
        ratio(
            f"against Ray Serve, p50 of {MANY}", found[f"dmi p50 of {MANY}"] / found[f"ray p50 of {MANY}"], most=RAY_P50
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--starlette", metavar="PYTHON")
    parser.add_argument("--ray", metavar="PYTHON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(given.repeats, given.seconds, given.starlette, given.ray, Path(folder))


if __name__ == "__main__":
    main()
