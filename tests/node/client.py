"""A client of the control socket that says what it likes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dmi_protocol.codec import pack, unpack


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, value: object) -> None:
        self.say_raw(len(body := pack(value)).to_bytes(4, "big") + body)

    def say_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def hear(self) -> Any:
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        return unpack(await self._reader.readexactly(length))

    async def is_closed(self) -> bool:
        return await self._reader.read(1) == b""


@asynccontextmanager
async def call(path: Path) -> AsyncIterator[Caller]:
    """Connect to the control socket at ``path``, however long the path is."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def ask(path: Path, verb: str, **arguments: object) -> Any:
    """One request, and its one answer: the map as it comes."""
    async with call(path) as caller:
        caller.say({"verb": verb, "args": arguments})
        return await caller.hear()
