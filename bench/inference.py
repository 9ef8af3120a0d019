"""Images a second through a small convolutional net: a mesh of four nodes on this machine, beside a plain loop in torch with a
``DataLoader`` of two workers, and where Ray is installed beside its ``map_batches``; in one run, on the same files.

``python -m bench.inference`` prints the medians and their ratios. Speeds are those between the first results and the last;
"with start-up" is the whole of it, from the command to the file. For Ray name the Python of an environment that has it and torch:
``--ray PYTHON``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

import dmi
from tests.mesh.local import LocalMesh, clean_environment

BATCH = 32
NODES = 4
LOOP_RATIO, RAY_RATIO, RAY_START_RATIO = 0.85, 1.5, 3.0
_WITHIN_S = 600


class Speed(NamedTuple):
    """Inputs a second without the start, and seconds with it."""

    inputs_per_second: float
    seconds: float


def images(folder: Path, count: int) -> None:
    """Photograph-like files: smooth, so that they are as long as real ones."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number:05}.jpg", quality=90)


def model(path: Path) -> None:
    """Three convolutions."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net.eval(), torch.zeros(2, 3, 112, 112)).save(path)


def child(script: str, folder: Path, python: str = sys.executable) -> Speed:
    """Of ``bench/SCRIPT``, which prints ``{"inputs_per_second": ...}``."""
    began = time.monotonic()
    command = [python, Path(__file__).with_name(script), folder / "m.pt", folder / "in", folder / f"{script}.jsonl"]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=_WITHIN_S, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} failed: {done.stderr[-2000:]}")
    return Speed(json.loads(done.stdout.splitlines()[-1])["inputs_per_second"], time.monotonic() - began)


def of_mesh(mesh: LocalMesh, folder: Path, number: int) -> Speed:
    """Of the mesh, which stands already."""
    config = {
        "model": str(folder / "m.pt"),
        "input": {"kind": "images", "path": str(folder / "in")},
        "preprocess": {"resize": 128, "center_crop": 112},
        "batch_size": BATCH,
    }
    began = time.monotonic()
    job = dmi.connect(mesh.node(0)).infer(config, folder / f"out-{number}")
    first: tuple[float, int] | None = None
    last = time.monotonic(), 0
    for event in job.progress():
        if event["step"] and event["step"] > last[1]:
            last = time.monotonic(), event["step"]
            first = first or last
    job.write()
    assert first is not None
    speed = (last[1] - first[1]) / (last[0] - first[0])
    return Speed(speed, time.monotonic() - began)


def median(measure: Callable[[int], Speed], repeats: int) -> Speed:
    """Of several."""
    found = [measure(number) for number in range(repeats)]
    return Speed(*(statistics.median(column) for column in zip(*found, strict=True)))


def main() -> None:
    """Measure and print; exit code 1 when a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", metavar="PYTHON", help="of an environment with ray and torch")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder / "in", chosen.images)
        model(folder / "m.pt")
        raise SystemExit(int(compare(folder, chosen.repeats, chosen.ray)))


def compare(folder: Path, repeats: int, ray: str | None) -> bool:
    """All of them, one after another; was a ratio missed?"""
    loop = median(lambda _: child("inference_loop.py", folder), repeats)
    mesh = LocalMesh(folder / "mesh", NODES)
    try:
        mesh.up()
        ours = median(lambda number: of_mesh(mesh, folder, number), repeats)
    finally:
        mesh.close()
    assert (folder / "out-0" / "results.jsonl").read_bytes() == (folder / "inference_loop.py.jsonl").read_bytes()
    ratio = ours.inputs_per_second / loop.inputs_per_second
    print(f"loop with a DataLoader: {loop.inputs_per_second:,.0f} inputs/s, {loop.seconds:.1f} s with start-up")
    print(f"mesh of {NODES} nodes:        {ours.inputs_per_second:,.0f} inputs/s, {ours.seconds:.1f} s with start-up")
    print(f"mesh / loop: {ratio:.2f} (at least {LOOP_RATIO})")
    is_missed = ratio < LOOP_RATIO
    if ray is None:
        print("Ray: skipped, --ray names no Python that has it")
        return is_missed
    theirs = median(lambda _: child("inference_ray.py", folder, ray), repeats)
    speed, start = ours.inputs_per_second / theirs.inputs_per_second, theirs.seconds / ours.seconds
    print(f"Ray Data:              {theirs.inputs_per_second:,.0f} inputs/s, {theirs.seconds:.1f} s with start-up")
    print(f"mesh / Ray: {speed:.2f} (at least {RAY_RATIO}), with start-up {start:.2f} (at least {RAY_START_RATIO})")
    return is_missed or speed < RAY_RATIO or start < RAY_START_RATIO


if __name__ == "__main__":
    main()
