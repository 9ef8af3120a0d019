"""A training for the benchmark of shares: ``shares_train.py FILE SECONDS`` writes when each step ended, and how long it took, as
binary doubles. A perceptron of 784, 512 and 10, four leaves of 32."""

import struct
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

FILE, SECONDS = Path(sys.argv[1]), float(sys.argv[2])

run = dmi.init(seed=1, leaves=4)
model = run.model(nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)))
optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3))
generator = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(4096, 784, generator=generator), torch.randint(0, 10, (4096,), generator=generator))
until = time.time() + SECONDS
with FILE.open("ab", buffering=0) as file:
    for _ in run.epochs(1_000_000):
        before = time.time()
        for step in run.steps(data, batch_size=128):
            for inputs, labels in step:
                nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            now = time.time()
            file.write(struct.pack("dd", now, now - before))
            before = now
        if time.time() > until:
            break
