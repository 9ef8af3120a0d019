"""Three buckets of four MiB, so that a push takes a while on a slow cable and can be cut in the middle."""

import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

run = dmi.init(seed=3, leaves=8)
model = run.model(nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(3)), nn.Linear(1024, 4)))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
generator = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(256, 1024, generator=generator), torch.randint(0, 4, (256,), generator=generator))
for _ in run.epochs(int(sys.argv[-1])):
    for step in run.steps(data, batch_size=64):
        for inputs, labels in step:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    run.checkpoint()
