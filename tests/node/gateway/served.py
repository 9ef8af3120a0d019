"""A gateway without a mesh: its HTTP server and its app in this process, and replicas that compute here, too."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import numpy as np

from dmi_node.gateway.app import App
from dmi_node.gateway.contract import Inputs
from dmi_node.gateway.http import Server
from dmi_node.gateway.offer import Choice, Offer
from dmi_node.gateway.replicas import Outcome
from dmi_node.gateway.statistics import Statistics
from dmi_node.gateway.tensors import DTYPES, GivenTensor
from dmi_protocol.identity import JobId, NodeId
from dmi_protocol.messages.roles import GatewayLaunch, RoleKey
from dmi_protocol.model import ModelContent, ModelRef, TensorInfo
from dmi_protocol.serving.datatypes import DATATYPES
from dmi_protocol.serving.events import Refusal

HOST = "127.0.0.1"


def content(*inputs: TensorInfo, outputs: tuple[TensorInfo, ...] = ()) -> ModelContent:
    """A model of such inputs; it has one output of two numbers where nothing else is said."""
    return ModelContent("exported", (), inputs, outputs or (TensorInfo("y", "float32", (None, 2)),))


def launch(model: ModelContent) -> GatewayLaunch:
    """Of a gateway for it, version 3 of ``net``."""
    return GatewayLaunch(
        key=RoleKey(JobId("net-1"), 1, "gateway", 0),
        node=NodeId("n"),
        node_name="n0",
        bundle="",
        directory="",
        threads=1,
        host=HOST,
        ports=(0, 0),
        model=ModelRef("net:3", model),
        max_batch=8,
        max_wait_ms=5,
        exact=False,
        port=8_100,
        may_move=True,
    )


class Computing:
    """Stands for replicas: each output has as many rows as were asked for, whose first element is the sum of the inputs' row.
    What is ``held`` is not answered; with ``refusal`` all are refused."""

    def __init__(self, model: ModelContent) -> None:
        self.model = model
        self.able = 1
        self.versions = frozenset({"net:3"})
        self.choices: list[Choice] = []
        self.waiting = 0
        self.asked: list[Inputs] = []
        self.within_ms: list[int] = []
        self.abandoned: list[int] = []
        self.is_held = False
        self.held: list[Callable[[], None]] = []
        self.refusal: Refusal | None = None

    def ask(self, inputs: Inputs, choice: Choice, within_ms: int, done: Callable[[Outcome], None]) -> int:
        """See ``Replicas``."""
        self.choices.append(choice)
        self.asked.append(inputs)
        self.within_ms.append(within_ms)
        if self.is_held:
            self.held.append(lambda: done(self._outcome(inputs)))
        else:
            done(self._outcome(inputs))
        return len(self.asked)

    def abandon(self, request: int) -> None:
        """See ``Replicas``."""
        self.abandoned.append(request)

    def _outcome(self, inputs: Inputs) -> Outcome:
        if self.refusal is not None:
            return Outcome((), "", self.refusal, None)
        sums = np.zeros(inputs.rows)
        for tensor in inputs.tensors:
            if tensor.datatype in DTYPES and tensor.datatype != "BF16":
                given = np.frombuffer(tensor.data, DTYPES[tensor.datatype]).reshape(inputs.rows, -1)
                sums += given.astype(np.float64).sum(axis=1)
        tensors = []
        for info in self.model.outputs:
            shape = (inputs.rows, *[size or 1 for size in info.shape[1:]])
            if info.dtype == "bfloat16":
                data = np.zeros(shape, np.uint16).tobytes()
            else:
                found = np.zeros((inputs.rows, int(np.prod(shape[1:], dtype=int))), info.dtype)
                found[:, 0] = sums
                data = found.tobytes()
            tensors.append(GivenTensor(info.name, DATATYPES[info.dtype], shape, data))
        return Outcome(tuple(tensors), "net:3", None, None)


class Served:
    """``failed`` has what the app raised and should not."""

    def __init__(self, model: ModelContent) -> None:
        self.replicas = Computing(model)
        self.offer = Offer(launch(model).model, Random(0))
        self.statistics = Statistics("net")
        self.failed: list[BaseException] = []
        self.app = App(launch(model), self.offer, self.replicas, self.statistics)  # type: ignore[arg-type]
        self.server = Server(self.app.handle, self.failed.append, self.app.admit)
        self.port = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client's connection."""
        return await asyncio.open_connection(HOST, self.port)


@asynccontextmanager
async def serving(model: ModelContent) -> AsyncIterator[Served]:
    """It listens, and is gone afterwards."""
    served = Served(model)
    await served.server.listen(HOST, 0)
    served.port = served.server.port
    try:
        yield served
    finally:
        served.server.stop_listening()
        served.server.close()
        await asyncio.sleep(0)
    assert served.failed == []


async def until(look: Callable[[], object]) -> None:
    """It is so, or becomes so in time. Raises ``TimeoutError``."""
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.001)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection: status, headers in lower case, body."""
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    return int(lines[0].split(" ")[1]), headers, body


def head(method: str, path: str, length: int | None = None, **headers: Any) -> bytes:
    """Of a request; underscores in names of headers are dashes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
