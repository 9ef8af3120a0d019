"""Pictures of a folder: found, decoded, converted by one rule, resized and cropped. Needs Pillow.

Whatever a file holds becomes RGB, or with ``grayscale`` 8 bits of grey: palettes are looked up, what is transparent lies on
white, CMYK is converted, 16 bits of grey are divided by 257, of an animation the first frame counts. Floating-point pictures
have no scale that everybody means, and are refused.
"""

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmi.errors import UsageError
from dmi.infer.config import Config, Preprocess
from dmi.infer.inputs import Bad, Given, Listing

try:
    from PIL import Image, UnidentifiedImageError
except ImportError as missing:
    raise UsageError("images are read with Pillow, which is not installed here: pip install 'dmi[infer]'") from missing

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
Image.MAX_IMAGE_PIXELS = None  # our own bound is looked at before anything is decoded
_WIDE = {"I;16", "I;16B", "I;16L", "I;16N", "I"}


def list_inputs(path: Path, config: Config) -> Listing:
    """Every file below the folder that is named as an image is."""
    if not path.is_dir():
        raise UsageError(f"{path} is no folder: input.path of images is a folder")
    root = os.fsencode(path)
    found = [os.fsdecode(os.path.relpath(each, root)) for each in _walk(root)]
    found.sort(key=os.fsencode)
    return Listing(len(found), tuple(found))


def _walk(folder: bytes) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif Path(os.fsdecode(entry.name)).suffix.lower() in SUFFIXES and not entry.is_dir():
                yield entry.path


def read(path: Path, config: Config, listing: Listing, start: int, stop: int, skip: Container[int]) -> Iterator[Given]:
    """See the package."""
    for place, name in enumerate(listing.names[start:stop], start):
        if place in skip:
            yield Given(name, None)
            continue
        try:
            yield Given(name, open_image(path / name, config))
        except Bad as error:
            yield Given(name, error)


def open_image(path: Path, config: Config) -> Any:
    """The picture as an array of height, width, channels (uint8). Raises ``Bad``."""
    pre = config.preprocess if isinstance(config.preprocess, Preprocess) else Preprocess()
    try:
        with Image.open(path) as image:
            if image.width * image.height > config.input.max_pixels:
                raise Bad(f"too large: {image.width} x {image.height} pixels, more than input.max_pixels")
            image.load()
            return _fitted(_converted(image, grayscale=pre.grayscale), pre)
    except Bad:
        raise
    except UnidentifiedImageError as error:
        raise Bad("no image that can be read") from error
    except FileNotFoundError as error:
        raise Bad("the file is gone") from error
    except PermissionError as error:
        raise Bad("the file may not be read") from error
    except MemoryError as error:
        raise Bad("too large for this host's memory") from error
    except Exception as error:  # decoders raise whatever they like for damaged files
        raise Bad(f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"[:200]) from error


def _converted(image: Any, *, grayscale: bool) -> Any:
    if image.mode in _WIDE:
        wide = np.asarray(image).astype(np.int64)
        if wide.min(initial=0) < 0 or wide.max(initial=0) > 65_535:
            raise Bad("its values are not those of 16 bits")
        image = Image.fromarray((wide // 257).astype(np.uint8), "L")
    elif image.mode == "F":
        raise Bad("a floating-point picture has no scale that everybody means; convert it to 8 or 16 bits")
    elif "A" in image.mode or "transparency" in image.info:
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, opaque)
    return image.convert("L" if grayscale else "RGB")


def _fitted(image: Any, pre: Preprocess) -> Any:
    if pre.resize is not None:
        image = image.resize(_resized(image.size, pre.resize), Image.Resampling.BILINEAR)
    if pre.center_crop is not None:
        image = _cropped(image, pre.center_crop)
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _resized(size: tuple[int, int], wanted: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height). One number is the shorter side; the longer one follows, rounded down."""
    if isinstance(wanted, tuple):
        return wanted[1], wanted[0]
    width, height = size
    if width <= height:
        return wanted, max(1, wanted * height // width)
    return max(1, wanted * width // height), wanted


def _cropped(image: Any, wanted: int | tuple[int, int]) -> Any:
    height, width = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    if image.width < width or image.height < height:
        raise Bad(f"smaller than center_crop: {image.width} x {image.height}; resize it first")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
