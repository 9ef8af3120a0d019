"""Files on their way to a node."""

from typing import IO

from dmi.connection import Conversation

_CHUNK = 1 << 20


def send(talk: Conversation, file: IO[bytes]) -> None:
    """The whole file, a piece at a time."""
    while piece := file.read(_CHUNK):
        talk.send({"chunk": piece})
    talk.send({"end": True})
