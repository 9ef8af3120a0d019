"""A DataLoader in place of the data set, buffers that are replaced and written between the steps, tensors in run.state, a layer
that thaws, and a learning rate in a tensor."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dmi

run = dmi.init(seed=4, leaves=8)
generator = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(150, 8, generator=generator), torch.randint(0, 3, (150,), generator=generator))


class Net(nn.Module):
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros(16))
        self.register_buffer("factor", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        self.seen = 0.9 * self.seen + 0.1 * hidden.mean(0).detach()
        scores: torch.Tensor = self.second(hidden - 0.1 * self.seen) * self.factor.float()
        return scores


model = run.model(Net())
model.first.requires_grad_(requires_grad=False)
optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01)))
loader = DataLoader(data, 48, shuffle=True, num_workers=1)
for epoch in run.epochs(4):
    model.first.requires_grad_(requires_grad=epoch > 0)
    optimizer.param_groups[0]["lr"] = np.float32(0.01 / (epoch + 1))
    for step in run.steps(loader):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        with torch.no_grad():
            model.factor.mul_(0.99)
            model.count.add_(1)
        run.state["trace"] = torch.cat([run.state.get("trace", torch.empty(0)), torch.tensor([step.metrics["loss"]])])
    run.state["sizes"] = {np.int16(len(run.state["trace"])), epoch}
    run.checkpoint()
if run.is_lead:
    print("trace", float(run.state["trace"].sum()), sorted(map(int, run.state["sizes"])), flush=True)
