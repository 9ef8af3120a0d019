"""Images a second through a small convolutional net: a mesh of four nodes on this machine, beside a plain loop in torch with a
``DataLoader`` of two workers, and where Ray is installed beside its ``map_batches``; in one run, on the same files.

``python -m bench.inference`` prints the medians and their ratios. Speeds are those of the second half of the inputs, when all has
started; "with start-up" is the whole of it for few inputs, from the command to the file, by a mesh that stands. For Ray name the
Python of an environment that has it and torch: ``--ray PYTHON``.
"""

import argparse
import json
import os
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


def child(script: str, folder: Path, inputs: str = "in", python: str = sys.executable) -> Speed:
    """Of ``bench/SCRIPT``, which prints ``{"inputs_per_second": ...}``."""
    began = time.monotonic()
    out = folder / f"{script}.{inputs}.jsonl"
    done = subprocess.run(
        [python, Path(__file__).with_name(script), folder / "m.pt", folder / inputs, out],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script} failed: {done.stderr[-2000:]}")
    return Speed(json.loads(done.stdout.splitlines()[-1])["inputs_per_second"], time.monotonic() - began)


def of_mesh(mesh: LocalMesh, folder: Path, number: int, inputs: str = "in") -> Speed:
    """Of the mesh, which stands already."""
    config = {
        "model": str(folder / "m.pt"),
        "input": {"kind": "images", "path": str(folder / inputs)},
        "preprocess": {"resize": 128, "center_crop": 112},
        "batch_size": BATCH,
    }
    began = time.monotonic()
    job = dmi.connect(mesh.node(0)).infer(config, folder / f"out-{inputs}-{number}")
    seen: list[tuple[float, int]] = []
    for event in job.progress():
        if event["step"] and (not seen or event["step"] > seen[-1][1]):
            seen.append((time.monotonic(), event["step"]))
    job.write()
    half = next(each for each in seen if 2 * each[1] >= seen[-1][1])
    speed = (seen[-1][1] - half[1]) / max(seen[-1][0] - half[0], 1e-3)
    return Speed(speed, time.monotonic() - began)


def median(measure: Callable[[int], Speed], repeats: int) -> Speed:
    """Of several."""
    found = [measure(number) for number in range(repeats)]
    return Speed(*(statistics.median(column) for column in zip(*found, strict=True)))


def main() -> None:
    """Measure and print; exit code 1 when a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=8_000, help="for the speed")
    parser.add_argument("--few", type=int, default=2_000, help="for the time with start-up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", metavar="PYTHON", help="of an environment with ray and torch")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder / "in", chosen.images)
        (folder / "few").mkdir()
        for path in sorted((folder / "in").iterdir())[: chosen.few]:
            os.link(path, folder / "few" / path.name)
        model(folder / "m.pt")
        raise SystemExit(int(compare(folder, chosen.repeats, chosen.ray)))


def compare(folder: Path, repeats: int, ray: str | None) -> bool:
    """All of them, one after another; was a ratio missed?"""
    loop = median(lambda _: child("inference_loop.py", folder), repeats)
    mesh = LocalMesh(folder / "mesh", NODES)
    try:
        mesh.up()
        ours = median(lambda number: of_mesh(mesh, folder, number), repeats)
        few = median(lambda number: of_mesh(mesh, folder, number, "few"), repeats)
    finally:
        mesh.close()
    assert (folder / "out-in-0" / "results.jsonl").read_bytes() == (folder / "inference_loop.py.in.jsonl").read_bytes()
    ratio = ours.inputs_per_second / loop.inputs_per_second
    print(f"loop with a DataLoader: {loop.inputs_per_second:,.0f} inputs/s")
    print(
        f"mesh of {NODES} nodes:        {ours.inputs_per_second:,.0f} inputs/s; few inputs {few.seconds:.1f} s with start-up"
    )
    print(f"mesh / loop: {ratio:.2f} (at least {LOOP_RATIO})", flush=True)
    is_missed = ratio < LOOP_RATIO
    if ray is None:
        print("Ray: skipped, --ray names no Python that has it")
        return is_missed
    theirs = median(lambda _: child("inference_ray.py", folder, python=ray), repeats)
    their_few = median(lambda _: child("inference_ray.py", folder, "few", ray), repeats)
    speed, start = ours.inputs_per_second / theirs.inputs_per_second, their_few.seconds / few.seconds
    print(
        f"Ray Data:              {theirs.inputs_per_second:,.0f} inputs/s; few inputs {their_few.seconds:.1f} s with start-up"
    )
    print(f"mesh / Ray: {speed:.2f} (at least {RAY_RATIO}), with start-up {start:.2f} (at least {RAY_START_RATIO})")
    return is_missed or speed < RAY_RATIO or start < RAY_START_RATIO


if __name__ == "__main__":
    main()
