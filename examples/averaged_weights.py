"""Weights that are averaged over the steps (an exponential moving average) are kept by the run, and evaluated beside the
model."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()

run = dmi.init(seed=0, leaves=8)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0
train, test = TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])

model = run.model(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.3))
average = run.keep(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95)))
for epoch in run.epochs(args.epochs):
    for step in run.steps(train, batch_size=128):
        for x, y in step:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        average.update_parameters(model)
    for evaluation in run.evaluate(test, batch_size=128):
        for x, y in evaluation:
            run.report(
                accuracy=(model(x).argmax(1) == y).float().mean(), averaged=(average(x).argmax(1) == y).float().mean()
            )
    if run.is_lead:
        print(f"epoch {epoch} accuracy {run.mean('accuracy'):.3f} averaged {run.mean('averaged'):.3f}", flush=True)
    run.checkpoint()
if run.is_lead:
    torch.save(average.module.state_dict(), "averaged.pt")
