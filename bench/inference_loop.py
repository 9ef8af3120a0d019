"""``python inference_loop.py MODEL FOLDER OUT``: what one would write with torch alone."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BATCH, WORKERS, SIZE, CROP = 32, 2, 128, 112


class Pictures(Dataset[tuple[int, Tensor]]):
    """Decoded, resized, cropped; channels first."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> tuple[int, Tensor]:
        with Image.open(self._paths[place]) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        size = (SIZE, SIZE * height // width) if width <= height else (SIZE * width // height, SIZE)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
        array = np.asarray(image.crop((left, top, left + CROP, top + CROP)))
        return place, torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous().float() * (1 / 255)


def main() -> None:
    """Compute, write, and print the inputs a second in the second half."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    model, folder, out = map(Path, sys.argv[1:4])
    net = torch.jit.load(model).eval()
    paths = sorted(folder.iterdir())
    began, count, count_then = 0.0, 0, 0
    with out.open("w") as file, torch.inference_mode():
        for places, batch in DataLoader(Pictures(paths), BATCH, num_workers=WORKERS):
            scores = torch.softmax(net(batch).float(), dim=1)
            best, classes = torch.sort(scores, dim=1, descending=True, stable=True)
            for place, category, score in zip(
                places.tolist(), classes[:, 0].tolist(), best[:, 0].tolist(), strict=True
            ):
                file.write(json.dumps({"id": paths[place].name, "category": category, "score": score}) + "\n")
            count += len(places)
            if not began and 2 * count >= len(paths):
                began, count_then = time.monotonic(), count
    print(json.dumps({"inputs_per_second": (count - count_then) / (time.monotonic() - began)}))


if __name__ == "__main__":
    main()
