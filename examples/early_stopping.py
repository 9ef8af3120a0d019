"""Evaluation on held-out images after each epoch, a learning rate that falls when it no longer helps, and an early end.

The evaluation is shared out over all workers, and its means are the same floats on each, so whatever follows from them needs
nothing more.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--patience", type=int, default=3)
parser.add_argument("--seconds", type=float, default=3_600.0, help="no epoch begins after so long")
args = parser.parse_args()

begun = time.monotonic()
run = dmi.init(seed=0, leaves=8)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0
train, test = TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])

model = run.model(nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9))
scheduler = run.scheduler(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1))
run.state.update(best=float("inf"), epochs_without=0)
for epoch in run.epochs(args.epochs):
    for step in run.steps(train, batch_size=128):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    for evaluation in run.evaluate(test, batch_size=128):
        for x, y in evaluation:
            scores = model(x)
            right = (scores.argmax(1) == y).float().mean()
            run.report(test_loss=nn.functional.cross_entropy(scores, y), accuracy=right)
    scheduler.step(run.mean("test_loss"))
    if run.is_lead:
        print(f"epoch {epoch} test loss {run.mean('test_loss'):.4f} accuracy {run.mean('accuracy'):.3f}", flush=True)
    is_better = run.mean("test_loss") < run.state["best"]
    run.state["best"] = min(run.state["best"], run.mean("test_loss"))
    run.state["epochs_without"] = 0 if is_better else run.state["epochs_without"] + 1
    run.checkpoint()
    if run.state["epochs_without"] > args.patience or run.broadcast(lambda: time.monotonic() - begun > args.seconds):
        break
