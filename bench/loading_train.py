"""What ``bench.loading`` trains: loading_train.py PASSES STEPS. Samples take 5 ms to decode, and as long to compute; passes with
a loader process and without take turns. Prints the seconds of each step as ``step WORKERS SECONDS``."""

import statistics
import sys
import time
import zlib
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import Dataset

import dmi

PASSES, STEPS = int(sys.argv[1]), int(sys.argv[2])
DECODE_S, BATCH, LEAVES = 0.005, 32, 8
spent = [0.0, 0.0]
"""Seconds of decoding and of computing, in this process, in the step of now."""
ENCODED = zlib.compress(torch.arange(1 << 16, dtype=torch.int32).numpy().tobytes(), 9)


def decoded() -> int:
    return len(zlib.decompress(ENCODED))


def rate(once: Callable[[], object]) -> float:
    """How often a second it is done."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        once()
        count += 1
    return count / (time.perf_counter() - began)


class Encoded(Dataset[torch.Tensor]):
    """Each sample is decoded again and again, until it has cost what it should."""

    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, place: int) -> torch.Tensor:
        began = time.perf_counter()
        value = float(sum(decoded() for _ in range(DECODES)) % 7 + place)
        spent[0] += time.perf_counter() - began
        return torch.tensor([value])


class Slow(nn.Module):
    """Multiplies matrices for as long."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.register_buffer("matrix", torch.randn(256, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1) to (n, 1)."""
        assert isinstance(self.matrix, torch.Tensor)
        began = time.perf_counter()
        for _ in range(PRODUCTS * len(x)):
            torch.mm(self.matrix, self.matrix)
        spent[1] += time.perf_counter() - began
        return x @ self.weight


run = dmi.init(seed=0, leaves=LEAVES)
matrix = torch.randn(256, 256)
rates = [(rate(decoded), rate(lambda: torch.mm(matrix, matrix))) for _ in range(9)]
DECODES, PRODUCTS = (max(1, round(DECODE_S * statistics.median(found))) for found in zip(*rates, strict=True))
model = run.model(Slow())
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.0))
for epoch in run.epochs(PASSES):
    began = time.perf_counter()
    for step in run.steps(Encoded(), batch_size=BATCH, workers=epoch % 2):
        for x in step:
            model(x).sum().backward()
        optimizer.step()
        if not epoch % 2:
            print("spent", *spent, flush=True)
        spent[:] = 0.0, 0.0
        print("step", epoch % 2, time.perf_counter() - began, flush=True)
        began = time.perf_counter()
