"""``python -m dmi.infer.load``: a child of the process that computes; it reads and decodes inputs, ahead of the computing.

It is told ``{"batches": [[start, stop], ...], "skip": [input, ...], "pack"}``, and answers each batch as fast as they are taken:
a kind, a length, and so many bytes. They are the inputs, or why there are none: a line.
"""

import ctypes
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dmi.errors import DmiError
from dmi.infer import carried
from dmi.infer.config import Config
from dmi.infer.inputs import Listing, Pack
from dmi.infer.line import DESCRIPTOR, GoneError, Line
from dmi.infer.place import UnreachableError
from dmi.infer.plan import CONFIG, LISTING
from dmi.infer.readers import read

HEAD = struct.Struct("<BQ")
INPUTS, UNREACHABLE, DISK, WRONG = range(4)
_SET_PARENT_DEATH_SIGNAL = 1


def main() -> None:
    """The process."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    channel = socket.socket(fileno=int(os.environ.pop(DESCRIPTOR)))
    line = Line(channel)
    with suppress(GoneError):
        config = msgspec.json.decode(Path(CONFIG).read_bytes(), type=Config)
        listing = msgspec.msgpack.decode(Path(LISTING).read_bytes(), type=Listing)
        while True:
            _serve(channel, config, listing, line.hear())


def _serve(channel: socket.socket, config: Config, listing: Listing, wanted: dict[str, Any]) -> None:
    """Batches that follow each other are read in one go: a table is not opened again for each."""
    skip = frozenset(wanted["skip"])
    pack = Pack(*wanted["pack"]) if wanted["pack"] is not None else None
    for run in _runs(wanted["batches"]):
        inputs = read(config, listing, run[0][0], run[-1][1], skip, pack)
        for start, stop in run:
            try:
                found = [given for _, given in zip(range(start, stop), inputs, strict=False)]
                _send(channel, INPUTS, carried.packed(found))
            except Exception as error:  # noqa: BLE001 (whatever it is, it is no input's doing that this process would end by it)
                _send(channel, _kind_of(error), _told(error).encode())
                return


def _kind_of(error: Exception) -> int:
    if isinstance(error, UnreachableError):
        return UNREACHABLE
    return DISK if isinstance(error, OSError) else WRONG


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, DmiError | OSError) else f"the inputs cannot be read: {error!r}"


def _runs(batches: list[list[int]]) -> list[list[list[int]]]:
    runs: list[list[list[int]]] = []
    for batch in batches:
        if runs and runs[-1][-1][1] == batch[0]:
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return runs


def _send(channel: socket.socket, kind: int, data: bytes) -> None:
    try:
        channel.sendall(HEAD.pack(kind, len(data)))
        channel.sendall(data)
    except OSError:
        sys.exit(0)  # nobody wants it any more


if __name__ == "__main__":
    main()
