"""Files on their way to a node."""

import io
from typing import IO, Any

from dmi.connection import Connection, Conversation

_CHUNK = 1 << 20


def send(talk: Conversation, file: IO[bytes]) -> None:
    """The whole file, a piece at a time."""
    while piece := file.read(_CHUNK):
        talk.send({"chunk": piece})
    talk.send({"end": True})


def submit(connection: Connection, args: dict[str, Any], data: bytes) -> str:
    """Submit a job whose files are ``data``; gives its id."""
    with connection.open() as talk:
        talk.send({"verb": "submit", "args": args})
        for _ in talk.receive()["need"]:
            send(talk, io.BytesIO(data))
        found: str = talk.receive()["ok"]["id"]
        return found
