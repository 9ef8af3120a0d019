"""The mesh port against those who have no business there."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import zmq
import zmq.asyncio

from dmi_protocol import limits
from dmi_protocol.identity import PublicKey
from dmi_wire.keys import KeyFileError, KeyPair
from dmi_wire.link import Link
from dmi_wire.listener import Listener
from dmi_wire.zap import Gatekeeper

SECONDS = 10
CLOSES_S = 3
"""Less than libzmq's patience with a handshake, which would close any connection."""


class Port:
    """A listener, its gatekeeper, and what they saw."""

    def __init__(self) -> None:
        self.keys = KeyPair.make()
        self.allowed: set[PublicKey] = set()
        self.denied: asyncio.Queue[PublicKey] = asyncio.Queue()
        self.failed = asyncio.Event()
        self.turned_away = asyncio.Event()
        self.context = zmq.asyncio.Context()
        self.gatekeeper = Gatekeeper(
            self.context, "test", lambda key: key in self.allowed, lambda key, _: self.denied.put_nowait(key)
        )
        self.listener = Listener(self.context, self.keys, "test")
        self.number = self.listener.bind("127.0.0.1", 0)
        self.tasks = [
            asyncio.ensure_future(self.gatekeeper.serve()),
            asyncio.ensure_future(self.listener.watch(self.failed.set)),
        ]
        self.links: list[Link] = []

    def dial(self, keys: KeyPair, server: PublicKey | None = None) -> tuple[Link, asyncio.Event, asyncio.Event]:
        link = Link(self.context, keys, f"127.0.0.1:{self.number}", server or self.keys.public)
        up, down = asyncio.Event(), asyncio.Event()
        self.tasks.append(asyncio.ensure_future(link.watch(up.set, down.set, self.turned_away.set)))
        self.links.append(link)
        return link, up, down

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for link in self.links:
            link.close()
        self.listener.close()
        self.gatekeeper.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    made = Port()
    yield made
    await made.close()


async def hears(port: Port, keys: KeyPair, text: bytes) -> None:
    """Somebody with a key that counts is heard."""
    port.allowed.add(keys.public)
    link, up, _ = port.dial(keys)
    await asyncio.wait_for(up.wait(), SECONDS)
    heard = asyncio.ensure_future(port.listener.receive())
    while not heard.done():
        link.send(text)
        await asyncio.wait([heard], timeout=0.05)
    found = heard.result()
    assert (found.key, found.frames) == (keys.public, (text,))


async def test_a_member_is_heard_under_its_key(port: Port) -> None:
    await hears(port, KeyPair.make(), b"hello")


async def test_a_stranger_is_denied_and_not_heard(port: Port) -> None:
    stranger = KeyPair.make()
    link, up, _ = port.dial(stranger)
    assert await asyncio.wait_for(port.denied.get(), SECONDS) == stranger.public
    link.send(b"let me in")
    assert link.dropped == 1
    assert not up.is_set()
    await hears(port, KeyPair.make(), b"the mesh goes on")


async def test_one_who_takes_us_for_another_gets_no_connection(port: Port) -> None:
    _, up, _ = port.dial(KeyPair.make(), KeyPair.make().public)
    await hears(port, KeyPair.make(), b"the mesh goes on")
    assert not up.is_set()
    assert port.denied.empty()


async def test_a_newcomer_that_was_denied_gets_in_once_it_is_allowed(port: Port) -> None:
    newcomer = KeyPair.make()
    _, up, _ = port.dial(newcomer)
    await asyncio.wait_for(port.denied.get(), SECONDS)
    port.allowed.add(newcomer.public)
    await asyncio.wait_for(up.wait(), SECONDS)


async def test_a_bad_question_does_not_end_the_gatecheckpoint_holder(port: Port) -> None:
    asker = port.context.socket(zmq.REQ)
    asker.linger = 0
    asker.connect("inproc://zeromq.zap.01")
    await asker.send_multipart([b"1.0", b"7"])
    assert (await asyncio.wait_for(asker.recv_multipart(), SECONDS))[2] == b"400"
    asker.close()
    await hears(port, KeyPair.make(), b"the mesh goes on")


def greeting(mechanism: bytes) -> bytes:
    """How a ZMTP 3.1 connection begins (RFC 37): signature, version, mechanism, role and filler; 64 bytes."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


HUGE = struct.pack(">Q", 2**62) + b"x" * 64
LONG_COMMAND, LONG_MESSAGE = b"\x06", b"\x02"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
        greeting(b"NULL") + LONG_MESSAGE + HUGE,
        greeting(b"CURVE") + LONG_COMMAND + HUGE,
        greeting(b"CURVE") + LONG_MESSAGE + HUGE,
    ],
    ids=["http", "no encryption", "a command of 2^62 bytes", "a message of 2^62 bytes"],
)
async def test_garbage_closes_its_connection_and_takes_no_memory(port: Port, garbage: bytes) -> None:
    before = psutil.Process().memory_info().rss
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
    writer.write(garbage)  # our end stays open: it is the listener that has to close
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(CLOSES_S):
            while await reader.read(65536):
                continue
    writer.close()
    assert psutil.Process().memory_info().rss - before < 32 * 1024 * 1024
    await hears(port, KeyPair.make(), b"the mesh goes on")


async def test_a_member_that_sends_too_much_loses_its_connection(port: Port) -> None:
    keys = KeyPair.make()
    port.allowed.add(keys.public)
    link, up, down = port.dial(keys)
    await asyncio.wait_for(up.wait(), SECONDS)
    link.send(bytes(limits.MESSAGE_BYTES + 1))
    await asyncio.wait_for(down.wait(), SECONDS)
    await hears(port, KeyPair.make(), b"the mesh goes on")


async def test_the_key_stands_on_each_message_of_a_connection_that_was_allowed_once(port: Port) -> None:
    keys = KeyPair.make()
    port.allowed.add(keys.public)
    link, up, _ = port.dial(keys)
    await asyncio.wait_for(up.wait(), SECONDS)
    port.allowed.clear()
    link.send(b"after the key was revoked")
    heard = await asyncio.wait_for(port.listener.receive(), SECONDS)
    assert heard.key == keys.public


def test_a_key_file_is_closed_to_others_and_is_not_overwritten(tmp_path: Path) -> None:
    keys, path = KeyPair.make(), tmp_path / "key"
    keys.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyPair.load(path) == keys
    assert keys.secret not in repr(keys)
    with pytest.raises(FileExistsError):
        KeyPair.make().save(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        KeyPair.load(path)
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(KeyFileError, match="damaged"):
        KeyPair.load(path)
