"""``python -m dmi.infer.load``: a child of the process that computes; it reads and decodes inputs, ahead of the computing.

It is told ``{"batches": [[start, stop], ...], "skip": [input, ...], "pack"}``, and answers each batch with a pickled list of
inputs behind its length, as fast as they are taken. What is pickled goes from our process to its parent, and nowhere else.
"""

import ctypes
import os
import pickle
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dmi.errors import DmiError
from dmi.infer.config import Config
from dmi.infer.inputs import Given, Listing
from dmi.infer.line import DESCRIPTOR, GoneError, Line
from dmi.infer.pack import Pack
from dmi.infer.plan import CONFIG, LISTING
from dmi.infer.readers import read

LENGTH = struct.Struct("<Q")
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
            found: list[Given] | Exception = []
            try:
                found = [given for _, given in zip(range(start, stop), inputs, strict=False)]
            except (DmiError, OSError) as error:
                found = error
            _send(channel, found)
            if isinstance(found, Exception):
                return


def _runs(batches: list[list[int]]) -> list[list[list[int]]]:
    runs: list[list[list[int]]] = []
    for batch in batches:
        if runs and runs[-1][-1][1] == batch[0]:
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return runs


def _send(channel: socket.socket, value: object) -> None:
    data = pickle.dumps(value, protocol=5)
    try:
        channel.sendall(LENGTH.pack(len(data)))
        channel.sendall(data)
    except OSError:
        sys.exit(0)  # nobody wants it any more


if __name__ == "__main__":
    main()
