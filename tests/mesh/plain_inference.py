"""The oracle: what a plain loop in torch writes. ``python plain_inference.py MODEL.pt IMAGES OUT.jsonl``: pictures that can
all be read, shorter side to 32, the middle cropped; one process, one thread, batches of 8 in the order of the names."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE, BATCH = 32, 8


def picture(path: Path) -> torch.Tensor:
    """As any tutorial has it."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    image = image.resize((SIZE * width // shorter, SIZE * height // shorter), Image.Resampling.BILINEAR)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    array = np.array(image.crop((left, top, left + SIZE, top + SIZE)))
    return torch.from_numpy(array).permute(2, 0, 1).float() * (1 / 255)


def main(model_file: str, folder: str, out_file: str) -> None:
    """The loop."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = torch.jit.load(model_file).eval()
    names = sorted(path.name for path in Path(folder).iterdir())
    with Path(out_file).open("w") as out, torch.inference_mode():
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            scores = torch.softmax(model(torch.stack([picture(Path(folder) / name) for name in batch])), 1)
            for name, score, category in zip(batch, *scores.max(1), strict=True):
                out.write(json.dumps({"id": name, "category": category.item(), "score": score.item()}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
