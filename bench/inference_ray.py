"""``python inference_ray.py MODEL FOLDER OUT``: the same with Ray Data, as its documentation has it; needs ray and torch, and
nothing of DMI."""

import json
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

BATCH, SIZE, CROP, ACTORS = 32, 128, 112, 2


def decode(row: dict[str, Any]) -> dict[str, Any]:
    """One picture: resized, cropped; channels first."""
    image = Image.open(BytesIO(row["bytes"])).convert("RGB")
    width, height = image.size
    size = (SIZE, SIZE * height // width) if width <= height else (SIZE * width // height, SIZE)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    array = np.asarray(image.crop((left, top, left + CROP, top + CROP)))
    return {"id": Path(row["path"]).name, "image": array.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)}


class Net:
    """The model, in an actor."""

    def __init__(self, path: str) -> None:
        torch.set_num_threads(1)
        self._net = torch.jit.load(path).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The best class of each, and its score."""
        with torch.inference_mode():
            scores = torch.softmax(self._net(torch.from_numpy(batch["image"])), dim=1)
        best, classes = scores.max(1)
        return {"id": batch["id"], "category": classes.numpy(), "score": best.numpy()}


def main() -> None:
    """Compute, write, and print the inputs a second in the second half."""
    model, folder, out = sys.argv[1:4]
    total = len(list(Path(folder).iterdir()))
    ray.init(
        num_cpus=2 * ACTORS, log_to_driver=False
    )  # with two, its actors would leave no processor to those who decode
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_binary_files(folder, include_paths=True).map(decode)
    found = rows.map_batches(Net, fn_constructor_args=(model,), batch_size=BATCH, concurrency=ACTORS)
    began, count, count_then = 0.0, 0, 0
    with Path(out).open("w") as file:
        for batch in found.iter_batches(batch_size=BATCH):
            for name, category, score in zip(batch["id"], batch["category"], batch["score"], strict=True):
                file.write(json.dumps({"id": str(name), "category": int(category), "score": float(score)}) + "\n")
            count += len(batch["id"])
            if not began and 2 * count >= total:
                began, count_then = time.monotonic(), count
    print(json.dumps({"inputs_per_second": (count - count_then) / (time.monotonic() - began)}))


if __name__ == "__main__":
    main()
