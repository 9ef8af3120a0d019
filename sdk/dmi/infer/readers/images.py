"""Pictures of a folder: found, decoded, converted by one rule, resized and cropped. Needs Pillow.

Whatever a file holds becomes RGB, or with ``grayscale`` 8 bits of grey: palettes are looked up, what is transparent lies on
white, CMYK is converted, 16 bits of grey are divided by 257, of an animation the first frame counts. Floating-point pictures
have no scale that everybody means, and are refused.
"""

import os
import time
from collections import Counter
from collections.abc import Container, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dmi.errors import UsageError
from dmi.infer.config import Config, Preprocess
from dmi.infer.inputs import Bad, Given, Listing
from dmi.infer.place import Place, UnreachableError

try:
    from PIL import Image, UnidentifiedImageError
except ImportError as missing:
    raise UsageError("images are read with Pillow, which is not installed here: pip install 'dmi[infer]'") from missing

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
Image.MAX_IMAGE_PIXELS = None  # our own bound is looked at before anything is decoded
FILE_BYTES = 1 << 30
"""A longer file is an error row: it would not fit into memory."""
LIST_BYTES = 256 << 20
_AGAIN_S = (0.2, 1.0, 3.0)
"""Between tries, where a network is between."""
_WIDE = {"I;16", "I;16B", "I;16L", "I;16N", "I"}


def list_inputs(where: Place, config: Config) -> Listing:
    """Every file below the folder that is named as an image is; or every line of a list."""
    if not where.is_folder():
        return _listed(where)
    found = [name for name in where.names() if Path(name).suffix.lower() in SUFFIXES]
    return Listing(len(found), tuple(found))


def _listed(where: Place) -> Listing:
    if where.suffix.lower() in SUFFIXES:
        raise UsageError(
            f"{where} is one image: input.path of images is a folder, or a text file with a path on each line"
        )
    if where.size() > LIST_BYTES:
        raise UsageError(f"{where} has more than {LIST_BYTES:,} bytes: a list has a path on each line")
    with where.open() as file:
        lines = [os.fsdecode(line.removesuffix(b"\r")) for line in file.read().split(b"\n")]
    names = tuple(line for line in lines if line.strip())
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"{where} has {twice!r} twice: an id has one result")
    return Listing(len(names), names)


def read(
    where: Place, config: Config, listing: Listing, start: int, stop: int, skip: Container[int]
) -> Iterator[Given]:
    """See the package."""
    for name, data in raw(where, config, listing, start, stop, skip):
        yield Given(name, None if data is None else decoded(data, config))


def raw(
    where: Place, config: Config, listing: Listing, start: int, stop: int, skip: Container[int] = ()
) -> Iterator[Given]:
    """The bytes of each file; or why there are none."""
    find = where.within if where.is_folder() else where.beside
    for place, name in enumerate(listing.names[start:stop], start):
        try:
            yield Given(name, None if place in skip else _bytes(find(name)))
        except Bad as error:
            yield Given(name, error)


def decoded(data: bytes | Bad, config: Config) -> Any:
    """The picture as an array of height, width, channels (uint8), or a ``Bad``."""
    if isinstance(data, Bad):
        return data
    try:
        return _decoded(data, config)
    except Bad as error:
        return error


def _decoded(data: bytes, config: Config) -> Any:
    pre = config.preprocess if isinstance(config.preprocess, Preprocess) else Preprocess()
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > config.input.max_pixels:
                raise Bad(f"too large: {image.width} x {image.height} pixels, more than input.max_pixels")
            image.load()
            return _fitted(_converted(image, grayscale=pre.grayscale), pre)
    except Bad:
        raise
    except UnidentifiedImageError as error:
        raise Bad("no image that can be read") from error
    except MemoryError as error:
        raise Bad("too large for this host's memory") from error
    except Exception as error:  # decoders raise whatever they like for damaged files
        raise Bad(f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"[:200]) from error


def _bytes(where: Place) -> bytes:
    """Raises ``Bad``; and ``OSError`` or ``UnreachableError`` for a disk or a network that fails: that is not the picture's
    fault."""
    for wait_s in (*_AGAIN_S, None):
        try:
            with where.open() as file:
                data = file.read(FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise Bad("the file is gone") from error
        except PermissionError as error:
            raise Bad("the file may not be read") from error
        except IsADirectoryError as error:
            raise Bad("a folder, and no file") from error
        except (OSError, UnreachableError):
            if wait_s is None or where.local is not None:
                raise
            time.sleep(wait_s)
        else:
            if len(data) > FILE_BYTES:
                raise Bad(f"a file of more than {FILE_BYTES:,} bytes")
            return data
    raise AssertionError


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
