"""AlexNet on Fashion-MNIST where that data set is installed (Debian: dataset-fashion-mnist), else on scikit-learn's digits.

The network is torchvision's (Krizhevsky 2014, "One weird trick"; 57 million parameters), written with torch alone, with the
first layers adapted to small grey images. Prints the mean loss of each epoch, keeps a checkpoint of each, and writes
alexnet.pt with both state dicts at the end; in a job that file lies on the lead's host (its log says where), and
`dmi-node export JOB alexnet.pt` writes the same anywhere.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import dmi

FASHION = Path("/usr/share/dataset-fashion-mnist")

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--samples", type=int, default=60_000)
args = parser.parse_args()


def fashion() -> TensorDataset:
    """Images (n, 1, 28, 28) in 0..1, and labels."""
    images = np.frombuffer(gzip.decompress((FASHION / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    labels = np.frombuffer(gzip.decompress((FASHION / "train-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    pixels = torch.tensor(images.reshape(-1, 1, 28, 28)[: args.samples], dtype=torch.float32) / 255
    return TensorDataset(pixels, torch.tensor(labels[: args.samples], dtype=torch.int64))


def digits() -> TensorDataset:
    """The same of the digits, 8 by 8 enlarged to 28 by 28."""
    found = load_digits()
    images = torch.tensor(found.images[: args.samples], dtype=torch.float32)[:, None] / 16
    larger = nn.functional.interpolate(images, size=28, mode="bilinear", align_corners=False)
    return TensorDataset(larger, torch.tensor(found.target[: args.samples], dtype=torch.int64))


class AlexNet(nn.Module):
    """Five convolutions and three linear layers. A 28 by 28 image is 3 by 3 after the last pooling, and doubled to the 6 by 6
    that the linear layers are made for."""

    def __init__(self, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 64, kernel_size=5, stride=1, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Upsample(scale_factor=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores: (n, 1, 28, 28) to (n, classes)."""
        return self.classifier(self.features(images).flatten(1))


run = dmi.init(seed=0, leaves=8)
train = fashion() if FASHION.is_dir() else digits()
model = run.model(AlexNet())
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
criterion = nn.CrossEntropyLoss()

for epoch in run.epochs(args.epochs):
    for step in run.steps(train, batch_size=256):
        for images, labels in step:
            loss = criterion(model(images), labels)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    run.checkpoint()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f}", flush=True)

if run.is_lead:
    run.export("alexnet.pt")
