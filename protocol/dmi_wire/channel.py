"""Messages on a stream between processes of one host, each behind its length: the control socket, the roles' channels."""

from collections.abc import Callable
from typing import Protocol

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError

_LENGTH_BYTES = 4


class Stream(Protocol):
    """``asyncio.StreamReader``, for those who must not load asyncio."""

    async def readexactly(self, n: int, /) -> bytes:
        """The next ``n`` bytes. Raises ``asyncio.IncompleteReadError``."""
        ...


def framed(body: bytes) -> bytes:
    """``body`` as it goes onto the stream."""
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def unframed(exactly: Callable[[int], bytes]) -> bytes:
    """The next body. ``exactly`` gives that many bytes of the stream, and raises when it ends before.

    Raises ``RemoteProtocolError`` when more than a message may have is claimed, before memory is taken for it.
    """
    return exactly(_length(exactly(_LENGTH_BYTES)))


async def read_framed(stream: Stream) -> bytes:
    """The next body. Raises ``RemoteProtocolError`` as ``unframed`` does, and ``asyncio.IncompleteReadError``."""
    return await stream.readexactly(_length(await stream.readexactly(_LENGTH_BYTES)))


def _length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "big")
    if length > limits.MESSAGE_BYTES:
        raise RemoteProtocolError(f"a message of {length} bytes is claimed; {limits.MESSAGE_BYTES} are allowed")
    return length
