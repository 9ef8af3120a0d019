"""Classes that are rare in the data are drawn as often as the others; samples are changed at random in loader processes.

The sampler draws from torch's own stream, which follows the run's seed and the epoch; the augmentation draws in the leaf's own
streams. So neither depends on who computes what, nor on how many processes fetch.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, WeightedRandomSampler

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--loaders", type=int, default=1)
args = parser.parse_args()

run = dmi.init(seed=0, leaves=8)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
kept = (labels < 5) | (torch.arange(len(labels)) % 8 == 0)
images, labels = images[kept], labels[kept]


class Shifted(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images that are moved by up to one pixel, and are a little noisy."""

    def __len__(self) -> int:
        return len(labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        down, right = torch.randint(-1, 2, (2,)).tolist()
        return images[place].roll((down, right), (1, 2)) + 0.05 * torch.randn(1, 8, 8), labels[place]


weights = 1.0 / torch.bincount(labels)[labels].float()
sampler = WeightedRandomSampler(weights.tolist(), len(labels))
model = run.model(nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(576, 10)))
optimizer = run.optimizer(torch.optim.Adam(model.parameters(), lr=0.003))
for epoch in run.epochs(args.epochs):
    for step in run.steps(Shifted(), batch_size=128, sampler=sampler, workers=args.loaders):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss, rare=(y >= 5).float().mean())
        optimizer.step()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f} rare {run.mean('rare'):.2f}", flush=True)
    run.checkpoint()
