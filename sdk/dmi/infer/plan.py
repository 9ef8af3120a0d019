"""What is sent to the mesh: the configuration, the list of all inputs, the user's own files; and how it is cut into slices."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dmi import bundle
from dmi.errors import UsageError
from dmi.infer.config import Config
from dmi.infer.inputs import Listing
from dmi.infer.place import absolute
from dmi.infer.readers import listing_of, packed
from dmi_protocol import limits

CONFIG = "config.json"
LISTING = "listing.msgpack"
_LABELS = "labels.txt"
_SLICES = 64
"""So many are aimed at: enough to share them out evenly, and few enough that each is worth its while."""


_SLICES_IN_STAGES = 16
"""For each of them every stage of the model is read anew."""


class Plan(Struct, frozen=True):
    """``hash`` is that of ``data``, which holds all that decides the output but the model."""

    config: Config
    listing: Listing
    data: bytes
    hash: str
    slice_inputs: int

    @property
    def slices(self) -> int:
        """How many there are."""
        return -(-self.listing.total // self.slice_inputs)

    def pack(self, slice_: int) -> Iterator[bytes]:
        """The inputs of a slice, as they travel."""
        first = slice_ * self.slice_inputs
        return packed(self.config, self.listing, first, min(first + self.slice_inputs, self.listing.total))

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-self.listing.total // self.config.batch_size)


def plan(config: Config, *, of_one_batch: bool = False) -> Plan:
    """Look at the inputs, and pack; ``of_one_batch`` those of the first one alone. Raises ``UsageError``."""
    config = replace(config, input=replace(config.input, path=absolute(config.input.path)))
    listing = listing_of(config)
    if of_one_batch:
        few = min(listing.total, config.batch_size)
        listing = listing._replace(total=few, names=listing.names[:few])
    files: dict[str, bytes] = {}
    for key in ("preprocess", "postprocess"):
        own = getattr(config, key)
        if isinstance(own, str):
            config = replace(config, **{key: _travelling(own, files)})
    if config.output.labels is not None:
        files[_LABELS] = _bytes(Path(config.output.labels), "output.labels")
        config = replace(config, output=replace(config.output, labels=_LABELS))
    files[CONFIG] = msgspec.json.encode(config)
    files[LISTING] = msgspec.msgpack.encode(listing)
    data = bundle.pack(files)
    batches = -(-listing.total // config.batch_size)
    per_slice = config.slice_batches or -(-batches // (_SLICES if config.held_bytes is None else _SLICES_IN_STAGES))
    if -(-batches // per_slice) > limits.SLICES:
        raise UsageError(
            f"slice_batches {per_slice} makes more than {limits.SLICES} slices of {batches} batches; leave it out"
        )
    return Plan(config, listing, data, hashlib.sha256(data).hexdigest(), per_slice * config.batch_size)


def _travelling(own: str, files: dict[str, bytes]) -> str:
    """``folder/own.py:function`` travels as ``own.py``; an installed module is where it is."""
    module, _, name = own.partition(":")
    if not module.endswith(".py"):
        return own
    path = Path(module)
    files[path.name] = _bytes(path, own)
    return f"{path.name}:{name}"


def _bytes(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what}: {path} cannot be read ({error.strerror})") from error
