"""A tiny script whose argument says what goes wrong in it, or what it does at its end."""

import os
import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

trouble = sys.argv[1] if len(sys.argv) > 1 else ""
if trouble == "package":
    import no_such_package  # type: ignore[import-not-found]  # noqa: F401
if trouble == "raises":
    raise RuntimeError("planted in line 16")
run = dmi.init(leaves=4)
size = 2 if trouble == "samples" else 16
shift = float(os.getpid()) if trouble == "data" else 0.0
data = TensorDataset(torch.arange(64.0)[:, None] + shift, torch.ones(64, 1))
model = run.model(nn.ReLU() if trouble == "parameters" else nn.Linear(1, 1))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1e-4))
for _ in run.epochs(0 if trouble == "epochs" else 2):
    for step in run.steps(data, batch_size=size):
        for x, y in step:
            loss = nn.functional.mse_loss(model(x), y) * (float("nan") if trouble == "nan" else 1.0)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
if trouble == "export" and run.is_lead:
    run.export("model.pt")
