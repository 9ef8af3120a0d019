"""A real gateway among hostile clients: everybody gets an answer that names the fault, good requests beside them are unharmed,
and memory has a bound."""

import asyncio
import gzip
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import dmi
from dmi_protocol import limits
from tests.mesh.load import WIDTH, Load, write_model
from tests.mesh.local import LocalMesh, until

pytestmark = [pytest.mark.mesh, pytest.mark.deep, pytest.mark.timeout(300)]

_MALFORMED, _SLOW, _BOMBS, _SENDERS = 10_000, 500, 3, 8
_MOST_GROWTH = 3 * limits.BODY_BYTES
"""Of its memory: what is unpacked of a few bodies at once."""


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Hostile:
    """Connections to one gateway."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        self._host, self._port = at.hostname or "", at.port or 0
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0
        self.unnamed: list[bytes] = []

    async def post(self, body: bytes, more: str = "") -> None:
        """One request on a connection of its own; its answer is a refusal that says why, or the body happened to be good."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        began = time.perf_counter()
        head = f"POST /v2/models/numbers/infer HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        found = await reader.readuntil(b"\r\n\r\n")
        status = int(found.split(b" ", 2)[1])
        length = int(re.search(rb"content-length: (\d+)", found.lower())[1])  # type: ignore[index]
        text = await reader.readexactly(length)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
        self.statuses[status] += 1
        if status != 200 and not json.loads(text)["error"]:
            self.unnamed.append(text)
        writer.close()

    async def malformed(self, count: int, seed: int) -> None:
        """Good bodies with something broken in them."""
        chance = random.Random(seed)
        good = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [1] * WIDTH}]}
        ).encode()
        for _ in range(count):
            body = bytearray(good)
            for _ in range(chance.choice([1, 2, 5])):
                place = chance.randrange(len(body))
                body[place : place + chance.choice([0, 1, 5])] = chance.choice(
                    [b"", b"[", b"-", b"9" * 30, b'"', b"\xff"]
                )
            await self.post(bytes(body))

    @asynccontextmanager
    async def half_headers(self, count: int) -> AsyncIterator[None]:
        """So many connections that never come to the end of their heads."""
        writers = []
        for _ in range(count):
            _, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(b"POST /v2/models/numbers/infer HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            writers.append(writer)
        yield
        for writer in writers:
            writer.close()

    async def absurd(self) -> None:
        """Bombs, depths and shapes."""
        bomb = gzip.compress(bytes(8 * limits.BODY_BYTES), 9)
        await asyncio.gather(*(self.post(bomb, "Content-Encoding: gzip\r\n") for _ in range(_BOMBS)))
        await self.post(b"[" * 100_000 + b"]" * 100_000)
        for shape in ("-1", [-1, WIDTH], [1 << 62, 1 << 62], [1] * 200, [[1]], None, [0.5, WIDTH]):
            tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": [1]}
            await self.post(json.dumps({"inputs": [tensor]}).encode())


async def attack(hostile: Hostile) -> None:
    async with hostile.half_headers(_SLOW):
        each = _MALFORMED // _SENDERS
        await asyncio.gather(*(hostile.malformed(each, seed) for seed in range(_SENDERS)), hostile.absurd())


def test_hostile_clients(five: LocalMesh, tmp_path: Path) -> None:
    mesh = dmi.connect(five.node(0))
    mesh.models.add("numbers", write_model(tmp_path / "m.pt2"))
    (url,) = mesh.serve("numbers", replicas=1, gateways=1).ready()
    pid = next(role["pid"] for role in mesh.roles() if role["role"] == "gateway")
    before, hostile = peak_bytes(pid), Hostile(url)
    load = Load(url, "numbers", connections=2, pause_s=0.005)
    try:
        asyncio.run(attack(hostile))
        grown = peak_bytes(pid) - before
    finally:
        load.end()
        mesh.unserve("numbers")
    print(f"{hostile.statuses}, slowest {hostile.slowest_s:.2f} s, memory grown by {grown / 1e6:.0f} MB")
    assert not load.failed, load.failed[:3]
    assert not load.wrong
    assert load.done > 100
    assert set(hostile.statuses) <= {200, 400, 413}
    assert hostile.statuses[413] == _BOMBS
    assert hostile.slowest_s < 5, "a second, on a machine that does nothing else"
    assert not hostile.unnamed
    assert 0 < grown < _MOST_GROWTH
    until(lambda: not mesh.roles(), 20, "all processes end")
    mesh.models.remove("numbers")
