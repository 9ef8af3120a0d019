"""The nets of the benchmark of serving, and what is asked of them."""

import json

import torch
from torch import nn

SHAPES = {"dense": (64,), "conv": (1, 28, 28)}


def make(name: str) -> nn.Module:
    """A small net of 64, 256 and 10, or a small convolutional one for pictures of 28 x 28."""
    torch.manual_seed(0)
    if name == "dense":
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    ).eval()


def values(name: str) -> list[float]:
    """One input, flat."""
    count = 1
    for size in SHAPES[name]:
        count *= size
    return [round((7 * nth % 100) / 100, 2) for nth in range(count)]


def body_v2(name: str) -> bytes:
    """As the Open Inference Protocol has it."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, *SHAPES[name]], "data": values(name)}
    return json.dumps({"inputs": [tensor]}).encode()


def body_plain(name: str) -> bytes:
    """For servers that take a list."""
    return json.dumps({"data": values(name)}).encode()
