"""``python -m dmi.infer.compute``: a child of a replica, which has the model in memory and computes batches. An
input that ends this process ends nothing else: the replica starts another one, and finds out which input it was.

For a deployment see ``dmi.serve.answer``. For a batch inference it is told ``{"begin": [first, last], "masked": {input:
cause}, "path", "offset", "pack", "alone"}`` and then ``{"next": true}`` for each batch; it writes rows into the file at ``path``,
and answers ``{"offset", "failed"}``, or ``{"error": kind, "text"}`` and ends.
"""

import ctypes
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from dmi.errors import DmiError
from dmi.infer.batches import Batches, InputsChangedError, Source
from dmi.infer.config import Config
from dmi.infer.inputs import Listing, Pack
from dmi.infer.line import DESCRIPTOR, GoneError, Line
from dmi.infer.loaders import Loaders, loaders_of
from dmi.infer.place import Place, UnreachableError
from dmi.infer.plan import CONFIG, LISTING
from dmi.infer.readers import read
from dmi.infer.rows import line_of
from dmi.serve.answer import answer
from dmi_protocol import limits
from dmi_protocol.messages.roles import BatchLaunch, ReplicaLaunch
from dmi_tensor.fingerprint import machine
from dmi_tensor.in_turn import StagesInTurn
from dmi_tensor.models import Loaded, ModelError, load
from dmi_wire.memory import keep_freed_memory

_SET_PARENT_DEATH_SIGNAL = 1


class NoInputError(DmiError):
    """The inputs are not on this host; they may be on others."""


def prepared(launch: BatchLaunch) -> Batches:
    """Everything in memory that a slice needs. Raises ``DmiError`` and ``ModelError``."""
    config = msgspec.json.decode(Path(CONFIG).read_bytes(), type=Config)
    if not config.input.travels and not Place(config.input.path).exists():
        raise NoInputError(f"this host has no {config.input.path}; where only one host has it set input.travels")
    listing = msgspec.msgpack.decode(Path(LISTING).read_bytes(), type=Listing)
    content = launch.model.content
    batches = Batches(config, _source(config, listing), content, _loaded(launch, config.device))
    with suppress(Exception):  # zeros may have a size that nobody would give: what is wrong shows at the first batch
        batches.warm_up()
    return batches


def _loaded(launch: BatchLaunch, device: str) -> Loaded | StagesInTurn:
    content = launch.model.content
    files = list(zip(content.needed, map(Path, launch.files), strict=True))
    if content.stages:
        return StagesInTurn(content, {file.blob: path for file, path in files}, device)
    return load(content.format, {file.name: path for file, path in files}, content.factory, device)


def _source(config: Config, listing: Listing) -> Source:
    count = loaders_of(config)
    return Loaders(config.batch_size, count).read if count else partial(read, config, listing)


def serve(line: Line, batches: Batches) -> None:
    """Whatever is wanted, until the replica has gone. Raises what computing raises."""
    found: Iterator[list[dict[str, Any]]] = iter(())
    path, offset = Path(), 0
    while True:
        wanted = line.hear()
        if "begin" in wanted:
            first, last = wanted["begin"]
            path, offset = Path(wanted["path"]), wanted["offset"]
            pack = Pack(*wanted["pack"]) if wanted["pack"] is not None else None
            found = batches.compute(first, last, dict(wanted["masked"]), pack, alone=wanted["alone"])
            continue
        rows = next(found)
        with path.open("r+b" if path.exists() else "xb") as file:
            file.truncate(offset)
            file.seek(offset)
            for row in rows:
                offset += file.write(line_of(row))
            file.flush()
            os.fsync(file.fileno())
        line.say(offset=offset, failed=sum("error" in row for row in rows))


def main() -> None:
    """The process."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    live(Line(socket.socket(fileno=int(os.environ.pop(DESCRIPTOR)))))


def live(line: Line) -> None:
    """Hear what is to be computed, and compute, until the replica has gone."""
    try:
        launch = msgspec.convert(line.hear()["launch"], BatchLaunch | ReplicaLaunch)
        torch.set_num_threads(launch.threads)
        be_deterministic()
        keep_freed_memory()
        threading.Thread(target=_beat, args=(line,), name="beat", daemon=True).start()
        _live(line, launch)
    except GoneError:
        return


def be_deterministic() -> None:
    """Algorithms that give the same bits each time; a warning where there is none."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)


def _beat(line: Line) -> None:
    """That we are scheduled depends on nothing that we are told."""
    with suppress(GoneError):
        while True:
            line.say(moving=True)
            time.sleep(limits.ROLE_BEAT_MS / 1000)


def _live(line: Line, launch: BatchLaunch | ReplicaLaunch) -> None:
    try:
        if isinstance(launch, ReplicaLaunch):
            answer(line, launch)
            return
        batches = prepared(launch)
        line.say(ready=True, machine=machine())
        serve(line, batches)
    except GoneError:
        raise
    except (NoInputError, InputsChangedError, UnreachableError) as error:
        line.say(error="input", text=str(error))
    except (DmiError, ModelError) as error:
        line.say(error="cannot-start", text=str(error))
    except OSError as error:
        line.say(error="disk", text=str(error))
    except Exception:  # noqa: BLE001 (the model raises whatever it is given: nobody else can compute with it)
        line.say(error="model", text=traceback.format_exc())


if __name__ == "__main__":
    main()
