"""Evaluations and broadcasts before, inside and after the passes, each of which changes what follows."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

run = dmi.init(seed=2, leaves=8)
generator = torch.Generator().manual_seed(0)
data, held_out = (
    TensorDataset(torch.randn(n, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator))
    for n in (200, 77)
)
model = run.model(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


def evaluated() -> float:
    for evaluation in run.evaluate(held_out, batch_size=32, workers=1):
        for x, y in evaluation:
            run.report(held_out=nn.functional.cross_entropy(model(x), y))
    return float(run.mean("held_out"))


optimizer.param_groups[0]["lr"] = 0.1 + 0.01 * run.broadcast(torch.rand(()).item())
for _ in run.epochs(3):
    optimizer.param_groups[0]["momentum"] = 0.9 - 0.1 * min(1.0, evaluated())
    for step in run.steps(data, batch_size=40):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        if step.index % 2:
            optimizer.param_groups[0]["lr"] *= run.broadcast(lambda: 1 - 0.1 * torch.rand(()).item())
            run.state["seen"] = [*run.state.get("seen", []), evaluated()]
    run.checkpoint()
optimizer.param_groups[0]["lr"] = evaluated()
for step in run.steps(data, batch_size=100):
    for x, y in step:
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
if run.is_lead:
    print("seen", len(run.state["seen"]), sum(run.state["seen"]), flush=True)
