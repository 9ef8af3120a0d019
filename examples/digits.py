"""A convolutional net with BatchNorm and Dropout reads handwritten digits (scikit-learn's, 1,797 images of 8 x 8).

python examples/digits.py                  one process
dmi-node submit examples/digits.py --wait  every host of the mesh, the same bits
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

run = dmi.init(seed=args.seed, leaves=8)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0
train = TensorDataset(images[~held_out], labels[~held_out])

model = run.model(
    nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(128, 10),
    )
)
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
scheduler = run.scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(args.epochs, 1)))
criterion = nn.CrossEntropyLoss()

for epoch in run.epochs(args.epochs):
    for step in run.steps(train, batch_size=128):
        for batch, targets in step:
            loss = criterion(model(batch), targets)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    scheduler.step()
    run.checkpoint()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f}", flush=True)

if run.is_lead:
    model.eval()
    with torch.no_grad():
        right = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    print(f"accuracy on {int(held_out.sum())} held-out images: {right:.4f}", flush=True)
