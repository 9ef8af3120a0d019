"""Small steps for some seconds, with a checkpoint after every tenth, and all that a run must remember: steady.py EPOCHS
[FOLDER]. With a folder the steps of the middle are slow until a file ``go on`` is in it: what is done meanwhile is in time."""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

EPOCHS = int(sys.argv[1])
GO_ON = Path(sys.argv[2]) / "go on" if len(sys.argv) > 2 else None
MIDDLE = 24
STEP_S = 0.7

run = dmi.init(seed=5, leaves=8)
model = run.model(nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 4)))
optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=0.01), clip_norm=1.0)
scheduler = run.scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * 8))
generator = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(500, 16, generator=generator), torch.randint(0, 4, (500,), generator=generator))
run.state["steps"] = 0
for epoch in run.epochs(EPOCHS):
    for step in run.steps(data, batch_size=64):
        for inputs, labels in step:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        scheduler.step()
        run.state["steps"] += 1
        if run.state["steps"] % 10 == 0:
            run.checkpoint()
        if GO_ON is not None and run.state["steps"] >= MIDDLE:
            end = time.monotonic() + STEP_S
            while time.monotonic() < end and not GO_ON.exists():
                time.sleep(0.02)
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f} steps {run.state['steps']}", flush=True)
