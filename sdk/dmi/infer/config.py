"""The configuration of a batch inference: JSON or TOML, every key known, every value checked before anything is read."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from dmi.errors import UsageError
from dmi_protocol.sizes import in_bytes

Kind = Literal["images", "parquet", "csv", "jsonl", "npy"]
Sizes = int | tuple[int, int]


class Input(Struct, frozen=True):
    """``id`` names the column (of a table) whose values are the ids; ``columns`` those that the model gets."""

    kind: Kind
    path: str
    id: str | None = None
    columns: tuple[str, ...] = ()
    max_pixels: int = 64_000_000
    """Larger pictures are error rows: they would not fit into memory."""
    travels: bool = False
    """Only the submitter's host has the inputs: those of each slice travel to whoever computes it."""


class Preprocess(Struct, frozen=True):
    """In this order. ``resize`` takes (height, width), or one number for the shorter side. ``scale`` multiplies: by default
    1/255 for images, and nothing else. ``mean`` and ``std`` are per channel, of scaled values."""

    grayscale: bool = False
    resize: Sizes | None = None
    center_crop: Sizes | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Output(Struct, frozen=True):
    """``top`` is how many classes a row names; 0 writes all outputs as they are. By default 1, where the model has one output
    of scores, and else 0. ``labels`` is a file with a name on each line."""

    kind: Literal["jsonl", "parquet"] = "jsonl"
    top: int | None = None
    labels: str | None = None


class Config(Struct, frozen=True):
    """``model`` is the name of a model of the mesh (``digits`` or ``digits:3``), or a model file."""

    model: str
    input: Input
    preprocess: Preprocess | str = Preprocess()
    preprocess_batches: bool = False
    """The user's ``preprocess`` gets the good inputs of a batch as a list, and gives as many."""
    postprocess: str | None = None
    """``module:function``: gets the outputs of one input, gives the row's fields."""
    batch_size: int = 32
    device: str = "cpu"
    output: Output = Output()
    threads: int = 1
    """Of torch, in each replica: another number may change last digits."""
    cpus: int | None = None
    """Processors that each replica is promised, and held to. It changes no byte of the output."""
    memory: int | str | None = None
    """Bytes of memory (``"2GB"``), in the same way."""
    replicas_per_node: int = 1
    loaders: int | None = None
    """Processes that read ahead, for each replica; 0 reads where it is computed. By default the processors that are left."""
    slice_batches: int | None = None
    """Batches of one slice; chosen by default. It changes no byte of the output."""
    memory_per_replica: int | str | None = None
    """Bytes of weights that a replica may hold (``"200MB"``): a larger model is cut into stages, which it computes in turn; by
    default what is free, where no host has memory for all of the model. It changes no byte of the output."""

    @property
    def held_bytes(self) -> int | None:
        """``memory_per_replica`` in bytes."""
        return _bytes(self.memory_per_replica)


def _bytes(given: int | str | None) -> int | None:
    return in_bytes(given) if isinstance(given, str) else given


_OTHER_WORDS = {
    ("image", "size"): ("preprocess", "resize"),
    ("image", "mean"): ("preprocess", "mean"),
    ("image", "std"): ("preprocess", "std"),
    ("image", "path"): ("input", "path"),
    ("model", "weights"): ("model",),
    ("data", "path"): ("input", "path"),
    ("data", "kind"): ("input", "kind"),
}
"""Keys in another common style, once they are in small letters."""


def read(path: str | Path) -> Config:
    """From a file. Raises ``UsageError``."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from error
    return of(found)


def of(found: object) -> Config:
    """From what a file, or a caller, says. Raises ``UsageError`` that names the key, and the nearest known one."""
    if not isinstance(found, Mapping):
        raise UsageError('a configuration is an object: {"model": ..., "input": {"kind": ..., "path": ...}}')
    plain = _in_our_words(found)
    _known(plain, Config, "")
    for name, kind in (("input", Input), ("output", Output), ("preprocess", Preprocess)):
        if isinstance(plain.get(name), Mapping):
            _known(plain[name], kind, f"{name}.")
    try:
        config = msgspec.convert(plain, Config)
    except msgspec.ValidationError as error:
        raise UsageError(f"the configuration does not fit: {_place(str(error))}") from error
    _check(config)
    return config


def _in_our_words(found: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in small letters, and those of the other style moved to where ours are."""
    small: dict[str, Any] = _small(found)
    for there, here in _OTHER_WORDS.items():
        section = small.get(there[0])
        if not isinstance(section, dict) or there[1] not in section:
            continue
        value = section.pop(there[1])
        if not section:
            del small[there[0]]
        inner = small if len(here) == 1 else small.setdefault(here[0], {})
        if not isinstance(inner, dict) or here[-1] in inner:
            what = next(iter(section), None) if here[0] == there[0] else None
            if what is not None:
                raise UsageError(f"the configuration has no key {f'{there[0]}.{what}'!r}")
            raise UsageError(f"{'.'.join(there)} and {'.'.join(here)} say the same: leave one of them out")
        inner[here[-1]] = value
    return small


def _small(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key).lower(): _small(inner) for key, inner in value.items()}
    return value


def _known(found: Mapping[str, Any], kind: type[Struct], where: str) -> None:
    names = [field.name for field in msgspec.structs.fields(kind)]
    for key in found:
        if key not in names:
            raise UsageError(f"the configuration has no key {where + key!r}{_nearest(key, names, where)}")


def _nearest(key: str, names: Iterable[str], where: str) -> str:
    near = difflib.get_close_matches(key, list(names), 1)
    return f"; did you mean {where + near[0]!r}?" if near else f"; it knows {', '.join(where + name for name in names)}"


def _place(text: str) -> str:
    """``Expected `int`, got `str` - at `$.batch_size``` as a sentence that begins with the key."""
    said, _, where = text.partition(" - at ")
    key = where.strip("`").removeprefix("$").removeprefix(".")
    return f"{key}: {said.lower()}" if key else said


def _check(config: Config) -> None:
    pre = config.preprocess if isinstance(config.preprocess, Preprocess) else Preprocess()
    sizes = [
        s
        for pair in (pre.resize, pre.center_crop)
        if pair is not None
        for s in (pair if isinstance(pair, tuple) else (pair,))
    ]
    for ok, why in (
        (1 <= config.batch_size <= 65_536, f"batch_size must be 1 to 65536, not {config.batch_size}"),
        (1 <= config.threads <= 1_024, f"threads must be 1 to 1024, not {config.threads}"),
        (config.cpus is None or 1 <= config.cpus <= 1_024, f"cpus must be 1 to 1024, not {config.cpus}"),
        (
            config.memory is None or (_bytes(config.memory) or 0) > 0,
            f"memory must be a size such as 2GB, not {config.memory!r}",
        ),
        (1 <= config.replicas_per_node <= 64, f"replicas_per_node must be 1 to 64, not {config.replicas_per_node}"),
        (config.loaders is None or 0 <= config.loaders <= 64, f"loaders must be 0 to 64, not {config.loaders}"),
        (
            config.memory_per_replica is None or (config.held_bytes or 0) > 0,
            f"memory_per_replica must be a size such as 200MB, not {config.memory_per_replica!r}",
        ),
        (config.slice_batches is None or config.slice_batches >= 1, "slice_batches must be 1 or more"),
        (
            not config.preprocess_batches or isinstance(config.preprocess, str),
            "preprocess_batches is for a preprocess that is module:function",
        ),
        (config.output.top is None or config.output.top >= 0, "output.top must be 0 or more"),
        (all(1 <= size <= 65_536 for size in sizes), "sizes of pictures are 1 to 65536"),
        (config.input.max_pixels >= 1, "input.max_pixels must be 1 or more"),
        (pre.std is None or all(pre.std), "preprocess.std has a zero, by which nothing can be divided"),
        (bool(config.model), "model must be a name or a file"),
        (bool(config.input.path), "input.path must be a file or a folder"),
        (
            config.input.kind == "images" or (pre.grayscale, pre.resize, pre.center_crop) == (False, None, None),
            f"grayscale, resize and center_crop are for images, and the input is {config.input.kind}",
        ),
    ):
        if not ok:
            raise UsageError(f"the configuration does not fit: {why}")
    for text, key in ((config.preprocess, "preprocess"), (config.postprocess, "postprocess")):
        if isinstance(text, str) and not text.partition(":")[2]:
            raise UsageError(
                f"the configuration does not fit: {key} is module:function or file.py:function, not {text!r}"
            )
