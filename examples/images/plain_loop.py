"""``python plain_loop.py WEIGHTS.safetensors FOLDER OUT.jsonl``: what one would write with torch alone, to compare with."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from net import make
from PIL import Image
from safetensors.torch import load_file

BATCH = 32

torch.set_num_threads(1)
net = make().eval()
net.load_state_dict(load_file(sys.argv[1]))
paths = sorted(Path(sys.argv[2]).iterdir())
right = 0
with Path(sys.argv[3]).open("w") as out, torch.inference_mode():
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        images = [torch.from_numpy(np.array(Image.open(path).convert("L")))[None].float() * (1 / 240) for path in batch]
        scores = torch.softmax(net(torch.stack(images)), dim=1)
        for path, score, digit in zip(batch, *scores.max(1), strict=True):
            out.write(json.dumps({"id": path.name, "category": digit.item(), "score": score.item()}) + "\n")
            right += path.stem.endswith(f"-{digit.item()}")
print(f"accuracy on {len(paths)} images: {right / len(paths):.4f}")
