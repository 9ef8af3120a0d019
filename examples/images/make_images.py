"""``python make_images.py FOLDER``: scikit-learn's 1,797 handwritten digits as PNG files of 8 x 8, named ``NUMBER-DIGIT.png``."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for number, (picture, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
    Image.fromarray((picture * 15).astype(np.uint8)).save(folder / f"{number:04}-{digit}.png")
print(f"{len(digits.images)} images in {folder}")
