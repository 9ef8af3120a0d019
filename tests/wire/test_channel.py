"""What is put behind its length comes out again, and a length that is no length takes no memory."""

import asyncio
import io

import pytest

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_wire.channel import framed, read_framed, unframed

BODIES = [b"", b"a", b"\x00" * 70_000]


def stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def test_bodies_come_out_as_they_went_in() -> None:
    source = io.BytesIO(b"".join(map(framed, BODIES)))
    assert [unframed(source.read) for _ in BODIES] == BODIES


async def test_bodies_come_out_of_a_stream() -> None:
    reader = stream(b"".join(map(framed, BODIES)))
    assert [await read_framed(reader) for _ in BODIES] == BODIES
    with pytest.raises(asyncio.IncompleteReadError):
        await read_framed(reader)


async def test_an_absurd_length_is_refused_before_anything_is_read() -> None:
    claim = (limits.MESSAGE_BYTES + 1).to_bytes(4, "big")
    asked = []

    def exactly(size: int) -> bytes:
        asked.append(size)
        return claim

    with pytest.raises(RemoteProtocolError, match=str(limits.MESSAGE_BYTES + 1)):
        unframed(exactly)
    assert asked == [len(claim)]
    with pytest.raises(RemoteProtocolError, match="allowed"):
        await read_framed(stream(claim))
