"""Files on their way to a node."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from dmi.connection import Connection, Conversation

_CHUNK = 1 << 20
_PATIENCE_S = 60.0
_COPIED_BYTES_PER_S = 2 << 20
"""Slower than this the node's copying to a second one is not waited for."""

Contents = Callable[[], Iterable[bytes]]


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes."""
    while piece := file.read(_CHUNK):
        yield piece


def send(talk: Conversation, contents: Iterable[bytes]) -> None:
    """All of it, about a megabyte at a time."""
    waiting = bytearray()
    for piece in contents:
        waiting += piece
        while len(waiting) >= _CHUNK:
            talk.send({"chunk": bytes(waiting[:_CHUNK])})
            del waiting[:_CHUNK]
    if waiting:
        talk.send({"chunk": bytes(waiting)})
    talk.send({"end": True})


def patience_s(size: int) -> float:
    """How long an answer may take after so many bytes were sent: they are copied to a second node."""
    return _PATIENCE_S + size / _COPIED_BYTES_PER_S


def submit(connection: Connection, args: dict[str, Any], files: Mapping[str, Contents], size: int) -> str:
    """Submit a job with these files, by their hash, of ``size`` bytes in all; gives its id."""
    with connection.open() as talk:
        talk.send({"verb": "submit", "args": args})
        for blob in talk.receive()["need"]:
            send(talk, files[blob]())
        found: str = talk.receive(patience_s(size))["ok"]["id"]
        return found
