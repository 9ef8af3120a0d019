"""A model of 400 MB where a replica may hold 200 MB, on three nodes of this machine: its outputs against those of the whole, to
the bit; requests a second one at a time and several at a time, none of them batched; and what fails while the process of a stage
is killed.

``python -m bench.stages`` prints medians and the ratio of the two.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dmi
from bench.serving import load
from tests.mesh.local import LocalMesh, until

WIDTH, LAYERS, MOST_BYTES = 2_048, 24, 200_000_000
SEVERAL, FASTER = 6, 1.3


def write_model(path: Path) -> None:
    """24 layers of 16.8 MB each, as an exported program."""
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, 10)).eval()
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2.4)  # or little is left of an input after so many layers
    rows = torch.export.Dim("rows", min=1, max=1024)
    torch.export.save(torch.export.export(net, (torch.zeros(2, WIDTH),), dynamic_shapes=({0: rows},)), path)


def body() -> bytes:
    """A request for one input."""
    values = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)).tolist()
    return json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, WIDTH], "data": values}]}).encode()


def are_equal(mesh: Any, path: Path) -> bool:
    """Has every output the bits of the whole model in this process?"""
    torch.set_num_threads(1)
    with path.open("rb") as file:
        whole = torch.export.load(file).module()
    for rows in (1, 2, 7, 32):
        given = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            wanted = whole(given)
        if mesh.predict("big", given).numpy().tobytes() != wanted.numpy().tobytes():
            return False
    return True


def stages(mesh: Any) -> dict[int, dict[str, Any]]:
    """The replica of each stage."""
    return {role["shards"][0]["shard"]: role for role in mesh.roles() if role["role"] == "replica"}


def kill_a_stage(mesh: Any, url: str, seconds: float) -> dict[str, Any]:
    """Load while the process of the second stage is killed; what the load generator says."""
    found: dict[str, Any] = {}
    asking = threading.Thread(target=lambda: found.update(load(url, body(), SEVERAL, seconds)))
    asking.start()
    time.sleep(seconds / 4)
    pid = stages(mesh)[1]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: stages(mesh).get(1, {"pid": pid})["pid"] != pid, 30, "another process has the stage")
    asking.join()
    return found


def _served(mesh: Any, max_batch: int) -> str:
    """Anew; gives the address of a gateway."""
    for each in mesh.deployments():
        mesh.unserve(each["model"])
    deployment = mesh.serve("big", replicas=1, max_batch=max_batch, memory_per_replica=MOST_BYTES)
    return str(deployment.ready()[0])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, local = Path(folder) / "big.pt2", LocalMesh(Path(folder) / "mesh", 3)
        write_model(path)
        local.up()
        try:
            mesh = dmi.connect(local.node(0))
            mesh.models.add("big", path)
            _served(mesh, 32)
            sizes = mesh.models.show("big")["cuts"][0]
            print(f"{path.stat().st_size / 1e6:,.0f} MB in {len(sizes)} stages of {[round(s / 1e6) for s in sizes]} MB")
            print(f"the bits of the whole: {'met' if are_equal(mesh, path) else 'MISSED'}")
            url, one, many = f"{_served(mesh, 1)}/v2/models/big/infer", [], []
            for _ in range(given.repeats):
                one.append(load(url, body(), 1, given.seconds)["requests_per_second"])
                many.append(load(url, body(), SEVERAL, given.seconds)["requests_per_second"])
            ratio = statistics.median(many) / statistics.median(one)
            print(
                f"one at a time {statistics.median(one):.1f}, {SEVERAL} at a time {statistics.median(many):.1f} requests/s"
            )
            print(f"faster: {ratio:.2f} (at least {FASTER}: {'met' if ratio >= FASTER else 'MISSED'})")
            done = kill_a_stage(mesh, url, 4 * given.seconds)
            print(
                f"a stage killed: {done['requests_per_second']:.1f} requests/s, p99 {done['p99_ms']:,.0f} ms, 0 failed: met"
            )
        finally:
            local.close()


if __name__ == "__main__":
    main()
