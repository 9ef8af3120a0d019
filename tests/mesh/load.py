"""Requests, one after another on each of many connections, whose answers can be checked to the bit: whole numbers go in."""

import asyncio
import json
import math
import random
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import nn

WIDTH = 6


class Numbers(nn.Module):
    """``x`` times whole numbers, plus ``version``: no order of summing and no batch changes a bit of it. Each of the ``layers``
    has so many bytes of zeros, and adds them."""

    def __init__(self, version: int, layers: int = 0, layer_bytes: int = 0) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.zeros(layer_bytes // 4) for _ in range(layers))
        self.register_buffer("weights", torch.arange(WIDTH * 2, dtype=torch.float32).reshape(WIDTH, 2))
        self.register_buffer("version", torch.tensor(float(version)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for zeros in self.layers:
            x = x + zeros.sum()
        return x @ self.weights + self.version  # type: ignore[operator]


def write_model(path: Path, version: int = 1, layers: int = 0, layer_bytes: int = 0) -> Path:
    """As an exported program."""
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(
        Numbers(version, layers, layer_bytes), (torch.zeros(2, WIDTH),), dynamic_shapes=({0: rows},)
    )
    torch.export.save(program, path)
    return path


def expected(values: list[int], version: int) -> list[float]:
    """What the model gives for one row."""
    return [float(sum(value * (2 * row + column) for row, value in enumerate(values)) + version) for column in (0, 1)]


class Load:
    """``total`` requests to one gateway, ``connections`` at a time, or as many as there are until ``end``; begins at once, in a
    thread. Every other one is binary."""

    def __init__(
        self, url: str, model: str, total: float = math.inf, connections: int = 8, pause_s: float = 0.0
    ) -> None:
        at = urlsplit(url)
        self._host, self._port = at.hostname or "", at.port or 0
        self._path = f"/v2/models/{model}/infer"
        self._left = total
        self._connections = connections
        self._pause_s = pause_s
        self.done = 0
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.versions: Counter[int] = Counter()
        self.times: list[float] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Is everything answered?"""
        return not self._thread.is_alive()

    def end(self) -> None:
        """No further ones; those that were asked are answered."""
        self._left = 0
        self.wait()

    def wait(self) -> None:
        """Until all are answered."""
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask(random.Random(nth)) for nth in range(self._connections)))

    async def _ask(self, chance: random.Random) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        while self._left > 0:
            self._left -= 1
            rows = [[chance.randrange(1_000) for _ in range(WIDTH)] for _ in range(chance.choice([1, 1, 2]))]
            began = time.perf_counter()
            try:
                writer.write(self._request(rows, is_binary=self._left % 2 == 0))
                status, headers, body = await self._answer(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failed.append(repr(error))
                reader, writer = await asyncio.open_connection(self._host, self._port)
                continue
            self.times.append(time.perf_counter() - began)
            self.done += 1
            if status != 200:
                self.failed.append(f"{status}: {body[:300]!r}")
            else:
                self._check(rows, headers, body)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
        writer.close()

    def _request(self, rows: list[list[int]], *, is_binary: bool) -> bytes:
        flat = [value for row in rows for value in row]
        tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), WIDTH]}
        if not is_binary:
            body = json.dumps({"inputs": [tensor | {"data": flat}]}).encode()
            more, tail = "", b""
        else:
            tail = struct.pack(f"<{len(flat)}f", *flat)
            body = json.dumps(
                {
                    "inputs": [tensor | {"parameters": {"binary_data_size": len(tail)}}],
                    "parameters": {"binary_data_output": True},
                }
            ).encode()
            more = f"Inference-Header-Content-Length: {len(body)}\r\n"
        head = f"POST {self._path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body) + len(tail)}\r\n\r\n"
        return head.encode() + body + tail

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"]))

    def _check(self, rows: list[list[int]], headers: dict[str, str], body: bytes) -> None:
        length = int(headers.get("inference-header-content-length", len(body)))
        found = json.loads(body[:length])
        version = int(found["model_version"])
        self.versions[version] += 1
        wanted = [value for row in rows for value in expected(row, version)]
        (output,) = found["outputs"]
        got = output.get("data") or list(struct.unpack(f"<{len(wanted)}f", body[length:]))
        if got != wanted:
            self.wrong.append(f"{rows} gave {got}, not {wanted}, by version {version}")
