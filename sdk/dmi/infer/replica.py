"""The replica's process: ``python -m dmi.infer.replica``, a child of the daemon that computes the slices it is told to.

Its working directory holds the configuration, the listing of the inputs, and the files of the user's own functions.
"""

import hashlib
import os
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec
import torch

from dmi.errors import DmiError
from dmi.infer.batches import Batches
from dmi.infer.config import Config
from dmi.infer.inputs import Listing
from dmi.infer.plan import CONFIG, LISTING
from dmi.infer.rows import line_of
from dmi_protocol.identity import BlobHash
from dmi_protocol.messages.roles import BatchLaunch, Bound, Slices, SliceWritten
from dmi_tensor.models import ModelError, load
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair
from dmi_wire.memory import keep_freed_memory

_NO_PORT = 0


class NoInputError(DmiError):
    """The inputs are not on this host; they may be on others."""


class Replica:
    """Computes one slice after another. What it has begun and is not told to compute any more is given up."""

    def __init__(self, child: Child, launch: BatchLaunch, batches: Batches) -> None:
        self._child = child
        self._launch = launch
        self._batches = batches
        self._directory = Path(launch.directory)
        self._told = Slices(0, ())
        self._written: set[int] = set()
        """What we have computed, and is committed, or about to be."""

    def run(self) -> NoReturn:
        """Until the daemon ends us."""
        while True:
            self._hear(wait=not self._told.slices)
            if self._told.slices:
                self._compute(self._told.slices[0])

    def _hear(self, *, wait: bool) -> None:
        found = self._child.slices(wait=wait)
        if found is None:
            return
        if found.reopened > self._told.reopened:
            self._written.clear()
        self._told = msgspec.structs.replace(found, slices=tuple(s for s in found.slices if s not in self._written))

    def _compute(self, slice_: int) -> None:
        size = self._launch.slice_inputs
        start, stop = slice_ * size, min((slice_ + 1) * size, self._launch.inputs)
        path = self._directory / f"slice-{slice_}"
        digest, failed, written = hashlib.sha256(), 0, 0
        with path.open("wb") as file:
            for rows in self._batches.compute(start, stop):
                lines = b"".join(map(line_of, rows))
                file.write(lines)
                digest.update(lines)
                failed, written = failed + sum("error" in row for row in rows), written + len(lines)
                self._hear(wait=False)
                if slice_ not in self._told.slices:
                    break
            file.flush()
            os.fsync(file.fileno())
        if slice_ not in self._told.slices:
            path.unlink()
            return
        blob = BlobHash(digest.hexdigest())
        self._child.tell(SliceWritten(self._told.decided, slice_, blob, str(path), written, failed))
        self._written.add(slice_)
        self._told = msgspec.structs.replace(self._told, slices=tuple(s for s in self._told.slices if s != slice_))


def prepared(launch: BatchLaunch) -> Batches:
    """Everything in memory that a slice needs. Raises ``DmiError`` and ``ModelError``."""
    config = msgspec.json.decode(Path(CONFIG).read_bytes(), type=Config)
    if not Path(config.input.path).exists():
        raise NoInputError(f"this host has no {config.input.path}, which is input.path")
    listing = msgspec.msgpack.decode(Path(LISTING).read_bytes(), type=Listing)
    content = launch.model.content
    files = {file.name: Path(path) for file, path in zip(content.files, launch.files, strict=True)}
    loaded = load(content.format, files, content.factory, config.device)
    batches = Batches(config, listing, content, loaded)
    batches.warm_up()
    return batches


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(BatchLaunch)
    torch.set_num_threads(launch.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    child.start()
    keep_freed_memory()
    keys = KeyPair.make()
    try:
        batches = prepared(launch)
    except NoInputError as error:
        child.fail("input", str(error), starting=True)
    except (DmiError, ModelError) as error:
        child.fail("cannot-start", str(error), starting=True)
    child.tell(Bound(f"{launch.host}:{_NO_PORT}", keys.public, os.getpid()))
    _live(child, Replica(child, launch, batches))


def _live(child: Child, replica: Replica) -> NoReturn:
    try:
        replica.run()
    except DmiError as error:
        child.fail("input", str(error), starting=False)
    except OSError as error:
        child.fail("disk", str(error), starting=False)
    except Exception:  # noqa: BLE001 (the model raises whatever it is given: nobody else can compute with it)
        child.fail("model", traceback.format_exc(), starting=False)


if __name__ == "__main__":
    main()
