"""Forward and backward in bfloat16 where torch may, weights and sums in float32: no GradScaler is needed."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
args = parser.parse_args()

run = dmi.init(seed=0, leaves=8)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
model = run.model(nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 10)))
optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=0.003), clip_norm=1.0)
scheduler = run.scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs))
for epoch in run.epochs(args.epochs):
    for step in run.steps(data, batch_size=256):
        for x, y in step:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    scheduler.step()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f}", flush=True)
    run.checkpoint()
