"""What ``bench.evaluation`` trains: evaluation_train.py WAITS_MS. A sample costs that much waiting, in an epoch as in an
evaluation, and both have as many. Prints ``evaluated SECONDS`` and ``trained SECONDS``."""

import sys
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

WAITS_S = float(sys.argv[1]) / 1000
SAMPLES, BATCH = 256, 64


class Slow(nn.Module):
    """Waits, as for a device of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 4) to (n, 2)."""
        time.sleep(WAITS_S * len(x))
        found: torch.Tensor = self.layer(x)
        return found


run = dmi.init(seed=0, leaves=8)
data = TensorDataset(torch.randn(SAMPLES, 4), torch.randint(0, 2, (SAMPLES,)))
model = run.model(Slow())
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
for _ in run.epochs(4):
    began = time.perf_counter()
    for step in run.steps(data, batch_size=BATCH):
        for x, y in step:
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    trained = time.perf_counter()
    for evaluation in run.evaluate(data, batch_size=BATCH):
        for x, y in evaluation:
            run.report(loss=nn.functional.cross_entropy(model(x), y))
    if run.is_lead:
        print("trained", trained - began, flush=True)
        print("evaluated", time.perf_counter() - trained, flush=True)
