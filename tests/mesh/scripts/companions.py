"""What learns beside the model, given to run.keep: a critic with its optimizer, trained between the steps, and a schedule of
one's own; two schedulers in one."""

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import SubsetRandomSampler, TensorDataset

import dmi

run = dmi.init(seed=6, leaves=8)
generator = torch.Generator().manual_seed(0)
data = TensorDataset(torch.randn(160, 8, generator=generator), torch.randint(0, 3, (160,), generator=generator))
model = run.model(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)))
optimizer = run.optimizer(torch.optim.Adam(model.parameters(), lr=0.02))
warm, cold = lr_scheduler.LinearLR(optimizer, 0.2, 1.0, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)
scheduler = run.scheduler(lr_scheduler.SequentialLR(optimizer, [warm, cold], [4]))
critic = run.keep(nn.Linear(1, 1))
own = run.keep(torch.optim.SGD(critic.parameters(), lr=0.1, momentum=0.9))


class Smoothed:
    """A mean that forgets."""

    def __init__(self) -> None:
        self.value = 1.0

    def add(self, value: float) -> None:
        self.value += 0.3 * (value - self.value)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


smoothed = run.keep(Smoothed())
for epoch in run.epochs(4):
    for step in run.steps(
        data, batch_size=32, sampler=SubsetRandomSampler(range(0, 160, 1 + epoch % 2)), drop_last=True
    ):
        weight = critic(torch.tensor([[smoothed.value]])).sigmoid().item()
        for x, y in step:
            loss = weight * nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        smoothed.add(step.metrics["loss"])
        own.zero_grad()
        (critic(torch.tensor([[step.metrics["loss"]]])) - 1).square().sum().backward()
        own.step()
        scheduler.step()
    run.checkpoint()
if run.is_lead:
    print("critic", critic.weight.item(), "smoothed", smoothed.value, flush=True)
