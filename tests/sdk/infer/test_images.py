"""Which files of a folder are inputs, in which order, and what becomes of pictures of every kind."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from dmi.errors import UsageError
from dmi.infer import config
from dmi.infer.config import Config
from dmi.infer.inputs import Bad
from dmi.infer.place import UnreachableError
from dmi.infer.readers import images, listing_of, read

PICTURE = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)


def of(folder: Path, **preprocess: Any) -> Config:
    return config.of({"model": "m", "input": {"kind": "images", "path": str(folder)}, "preprocess": preprocess})


def values(folder: Path, **preprocess: Any) -> dict[str, Any]:
    found = of(folder, **preprocess)
    listing = listing_of(found)
    return {given.id: given.value for given in read(found, listing, 0, listing.total)}


def save(path: Path, mode: str = "RGB", **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURE).convert(mode).save(path, **more)


def test_an_input_is_a_file_that_is_named_as_an_image_wherever_it_lies(tmp_path: Path) -> None:
    odd = [
        "[D] 100% #1?/a.png",
        "a'b.png",
        'a"b.png',
        "-n.png",
        "\u00fc.png",
        "u\u0308.png",
        "x\ny.png",
        "A.PNG",
        "sub/deep/z.jpeg",
    ]
    for name in odd:
        save(tmp_path / name)
    save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    for name in (".hidden.png", ".folder/a.png"):
        save(tmp_path / name)
    for name in ("Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "A.PNG")
    (tmp_path / "round").symlink_to(tmp_path)
    names = list(values(tmp_path))
    assert names == sorted([*odd, "link.png", "\udcff.png"], key=os.fsencode)


def test_where_there_is_nothing_to_read_a_line_says_so(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "there is no"), (tmp_path, "has no inputs of kind images")):
        with pytest.raises(UsageError, match=words):
            listing_of(of(path))
    (tmp_path / "file.png").touch()
    with pytest.raises(UsageError, match="is one image"):
        listing_of(of(tmp_path / "file.png"))


def test_every_mode_becomes_colours(tmp_path: Path) -> None:
    for mode in ("L", "P", "LA", "RGBA", "1"):
        save(tmp_path / f"{mode}.png", mode)
    save(tmp_path / "CMYK.jpg", "CMYK")
    save(tmp_path / "webp.webp", lossless=True)
    Image.fromarray(PICTURE).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (16, 12), "red")]
    )
    found = values(tmp_path)
    assert {value.shape for value in found.values()} == {(12, 16, 3)}
    assert np.array_equal(found["webp.webp"], PICTURE)
    assert np.array_equal(found["RGBA.png"], PICTURE)
    assert {value.shape for value in values(tmp_path, grayscale=True).values()} == {(12, 16, 1)}


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    wide = np.linspace(0, 65_535, 192).reshape(12, 16).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = values(tmp_path, grayscale=True)["wide.png"]
    assert np.array_equal(found[:, :, 0], (wide // 257).astype(np.uint8))
    Image.fromarray(wide.astype(np.float32)).save(tmp_path / "float.tiff")
    assert "floating-point" in str(values(tmp_path)["float.tiff"])


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    assert values(tmp_path)["glass.png"].min() == 255


def test_a_bad_picture_is_told_and_the_others_are_as_they_were(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "z.jpg", quality=95)
    whole, jpeg = (tmp_path / "a.png").read_bytes(), (tmp_path / "z.jpg").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:200])
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hi")
    Image.new("1", (9_000, 9_000)).save(tmp_path / "bomb.png")
    found = values(tmp_path)
    good = {name for name, value in found.items() if not isinstance(value, Bad)}
    assert good == {"a.png", "z.jpg"}
    assert str(found["empty.png"]) == str(found["text.jpg"]) == "no image that can be read"
    assert str(found["cut.jpg"]).startswith("damaged: ")
    assert str(found["cut.png"]).startswith("damaged")
    assert "9000 x 9000 pixels, more than input.max_pixels" in str(found["bomb.png"])


@pytest.mark.parametrize(
    ("preprocess", "shape"),
    [
        ({"resize": 6}, (6, 8, 3)),
        ({"resize": [5, 7]}, (5, 7, 3)),
        ({"resize": 8, "center_crop": 8}, (8, 8, 3)),
        ({"center_crop": [4, 6]}, (4, 6, 3)),
    ],
)
def test_pictures_are_resized_and_cropped(tmp_path: Path, preprocess: dict[str, Any], shape: tuple[int, ...]) -> None:
    save(tmp_path / "a.png")
    assert values(tmp_path, **preprocess)["a.png"].shape == shape


def test_the_middle_is_cropped_and_what_is_smaller_is_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert np.array_equal(values(tmp_path, center_crop=4)["a.png"], PICTURE[4:8, 6:10])
    assert "smaller than center_crop: 16 x 12" in str(values(tmp_path, center_crop=14)["a.png"])


def test_a_list_has_a_path_on_each_line(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.png", "elsewhere/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, "RGB")
    paths = ["b.png", "sub/a.png", "", str(tmp_path / "elsewhere" / "c.png"), f"file://{tmp_path}/b.png", "gone.png"]
    (tmp_path / "list.txt").write_text("\r\n".join(paths))
    found = of(tmp_path / "list.txt")
    listing = listing_of(found)
    given = list(read(found, listing, 0, listing.total))
    assert [each.id for each in given] == [path for path in paths if path]
    assert [str(each.value) for each in given if isinstance(each.value, Bad)] == ["the file is gone"]
    (tmp_path / "list.txt").write_text("b.png\nsub/a.png\nb.png\n")
    with pytest.raises(UsageError, match=r"has 'b\.png' twice"):
        listing_of(found)


@pytest.fixture
def elsewhere() -> Iterator[Any]:
    """A file system that is not this host's."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def test_a_folder_may_have_an_address(tmp_path: Path, elsewhere: Any) -> None:
    save(tmp_path / "x.png", "RGB")
    for name in ("b.PNG", "a/z.png", ".hidden.png", ".no/x.png", "notes.txt"):
        elsewhere.pipe(f"/in/{name}", (tmp_path / "x.png").read_bytes())
    found = config.of({"model": "m", "input": {"kind": "images", "path": "memory://in"}})
    listing = listing_of(found)
    assert listing.names == ("a/z.png", "b.PNG")
    assert all(np.array_equal(each.value, PICTURE) for each in read(found, listing, 0, 2))
    with pytest.raises(UsageError, match="there is no memory://none"):
        listing_of(config.of({"model": "m", "input": {"kind": "images", "path": "memory://none"}}))
    with pytest.raises(UsageError, match="nosuch"):
        listing_of(config.of({"model": "m", "input": {"kind": "images", "path": "nosuch://x"}}))


def test_a_network_that_fails_is_not_the_picture_s_fault(
    tmp_path: Path, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_AGAIN_S", (0.0, 0.0))
    save(tmp_path / "x.png", "RGB")
    elsewhere.pipe("/in/x.png", (tmp_path / "x.png").read_bytes())
    found = config.of({"model": "m", "input": {"kind": "images", "path": "memory://in"}})
    listing, left = listing_of(found), 2

    def fails(*_: object, **__: object) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ConnectionResetError("reset by peer")
        return opened(elsewhere, "/in/x.png")

    opened = type(elsewhere).open
    monkeypatch.setattr(type(elsewhere), "open", fails)
    (given,) = read(found, listing, 0, 1)
    assert np.array_equal(given.value, PICTURE)
    left = 9
    with pytest.raises(UnreachableError, match="reset by peer"):
        list(read(found, listing, 0, 1))
