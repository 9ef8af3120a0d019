"""Load for a benchmark of serving: ``python serving_load.py URL BODY_FILE CONNECTIONS SECONDS`` sends the same request on so many
connections, each again as soon as it is answered, and prints ``{"requests_per_second", "p50_ms", "p99_ms", "failed"}``.

It parses no more of an answer than it must, so that it takes little of the machine. The first half second is not counted.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

_WARM_S = 0.5


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, times: list[tuple[float, float]], until: float) -> None:
        self._request = request
        self._times = times
        self._until = until
        self._data = b""
        self._began = 0.0
        self.failed = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._data[:end].lower()
        place = head.find(b"content-length: ")
        if place >= 0:
            length = int(head[place + 16 :].split(b"\r", 1)[0])
            is_whole = len(self._data) >= end + 4 + length
        else:  # chunks
            is_whole = self._data.endswith(b"0\r\n\r\n")
        if not is_whole:
            return
        now = time.perf_counter()
        self.failed += head[9:12] != b"200"
        self._times.append((now, now - self._began))
        self._data = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.failed += 1
            self.ended.set_result(None)


async def run(url: str, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    """All of it."""
    at = urlsplit(url)
    lines = (f"POST {at.path} HTTP/1.1", f"Host: {at.netloc}", "Content-Type: application/json")
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    request, times = head.encode() + body, list[tuple[float, float]]()
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    until = began + _WARM_S + seconds
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(request, times, until), at.hostname, at.port)
        clients.append(client)
    await asyncio.gather(*(client.ended for client in clients))
    counted = sorted(took for when, took in times if began + _WARM_S <= when <= until)
    return {
        "requests_per_second": len(counted) / seconds,
        "p50_ms": counted[len(counted) // 2] * 1000,
        "p99_ms": counted[len(counted) * 99 // 100] * 1000,
        "failed": sum(client.failed for client in clients),
    }


if __name__ == "__main__":
    _, url, path, connections, seconds = sys.argv
    found = run(url, Path(path).read_bytes(), int(connections), float(seconds))
    print(json.dumps(uvloop.run(found)))
