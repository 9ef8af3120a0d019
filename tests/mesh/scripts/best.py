"""What a script takes from run.state into variables of its own, before the loop: a number, a list, a nested dict. The first epoch
is the best one, so that whoever comes later has it from there alone."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

run = dmi.init(seed=0, leaves=8)
generator = torch.Generator().manual_seed(3)
data = TensorDataset(torch.randn(96, 10, generator=generator), torch.randint(0, 2, (96,), generator=generator))
model = run.model(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
best, history = run.state.setdefault("best", float("inf")), run.state.setdefault("history", [])
seen = run.state.setdefault("seen", {"epochs": [], "mean": torch.zeros(1)})
for epoch in run.epochs(8):
    for step in run.steps(data, batch_size=32):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    value = run.mean("loss") if epoch else 0.1
    if value < best:
        best = run.state["best"] = value
    history.append(value)
    seen["epochs"].append(epoch)
    seen["mean"] += value
    run.checkpoint()
state = run.state["history"], run.state["seen"]["epochs"], run.state["seen"]["mean"].item()
print("kept", best == run.state["best"], best, *state, flush=True)
