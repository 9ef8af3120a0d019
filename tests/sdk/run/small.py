"""A small script with everything that is awkward: BatchNorm, Dropout, an uneven last batch, clipping, a scheduler."""

import sys

import torch
from torch import nn

from dmi.run.begin import init

CLIP = None if sys.argv[1] == "none" else float(sys.argv[1])

run = init(seed=3, leaves=8)
model = run.model(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)))
optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=0.01), clip_norm=CLIP)
scheduler = run.scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5))
generator = torch.Generator().manual_seed(0)
data = torch.utils.data.TensorDataset(
    torch.randn(83, 6, generator=generator), torch.randint(0, 3, (83,), generator=generator)
)
for _ in run.epochs(2):
    for step in run.steps(data, batch_size=32):
        for inputs, labels in step:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    scheduler.step()
    run.checkpoint()
print(run.mean("loss"))
