"""Fine-tuning: a backbone that was trained before is frozen, and thaws after some epochs with a smaller learning rate.

All parameters are in the optimizer from the beginning; those without a gradient are skipped, as in torch.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--thaw", type=int, default=2, help="the epoch from which the backbone trains, too")
args = parser.parse_args()

run = dmi.init(seed=0, leaves=8)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def trained_before() -> nn.Module:
    """Stands for weights that were loaded from a file: an autoencoder's first half, trained a little in plain torch."""
    encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
    decoder = nn.Linear(32, 64)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(decoder(encoder(images)), images).backward()
        optimizer.step()
    return encoder


class Classifier(nn.Module):
    """A backbone and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = trained_before(), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 64) to classes (n, 10)."""
        scores: torch.Tensor = self.head(self.backbone(x))
        return scores


model = run.model(Classifier())
model.backbone.requires_grad_(requires_grad=False)
optimizer = run.optimizer(
    torch.optim.AdamW(
        [{"params": model.backbone.parameters(), "lr": 0.001}, {"params": model.head.parameters(), "lr": 0.01}]
    )
)
for epoch in run.epochs(args.epochs):
    if epoch >= args.thaw:
        model.backbone.requires_grad_(requires_grad=True)
    for step in run.steps(TensorDataset(images, labels), batch_size=256):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f}", flush=True)
    run.checkpoint()
