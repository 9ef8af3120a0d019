"""The control socket: length-prefixed msgpack, one request for each connection, answered or refused in one line."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

from dmi_node.tasks import Tasks
from dmi_node.unix_socket import bound
from dmi_protocol.codec import pack, unpack
from dmi_protocol.errors import RemoteProtocolError
from dmi_wire.channel import framed, read_framed

_logger = logging.getLogger("dmi.control")
_CLIENTS = 64
_REQUEST_S = 30.0


class RefusalError(Exception):
    """The request is refused. ``kind`` is unknown, refused, usage or no-quorum."""

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(line)
        self.kind = kind


class Client:
    """The other end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, value: object) -> None:
        """Say one thing; waits while the client does not read."""
        self._writer.write(framed(pack(value)))
        await asyncio.wait_for(self._writer.drain(), _REQUEST_S)

    async def receive(self) -> Any:
        """The next thing that it says. Raises ``RemoteProtocolError``, ``asyncio.IncompleteReadError``."""
        return unpack(await asyncio.wait_for(read_framed(self._reader), _REQUEST_S))

    async def gone(self) -> None:
        """Returns when the client has closed its end."""
        while await self._reader.read(1 << 16):
            continue


Verb = Callable[[Client, dict[str, Any]], Awaitable[object] | AsyncGenerator[object, None]]


class ControlServer:
    """Serves ``verbs``: a coroutine gives the one answer, an asynchronous generator a stream of items."""

    def __init__(self, verbs: dict[str, Verb], tasks: Tasks) -> None:
        self._verbs = verbs
        self._tasks = tasks
        self._clients = 0
        self._servers: list[asyncio.Server] = []

    async def listen(self, path: Path) -> None:
        """Bind the socket, for the owner and its group; this one too."""
        door = bound(path, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0o660)
        self._servers.append(await asyncio.start_unix_server(self._accept, sock=door))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._clients >= _CLIENTS:
            writer.close()
            return
        self._clients += 1
        self._tasks.start(self._serve(Client(reader, writer), writer), "control client")

    async def _serve(self, client: Client, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(client)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            return
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, client: Client) -> None:
        try:
            request = await client.receive()
            verb, arguments = request["verb"], request["args"]
            if not isinstance(arguments, dict):
                raise RefusalError("usage", "the arguments of a request are a map")
            if verb not in self._verbs:
                raise RefusalError(
                    "usage", f"this node does not know the verb {verb!r}; is the command newer than the node?"
                )
            answer = self._verbs[verb](client, arguments)
            if isinstance(answer, AsyncGenerator):
                await self._stream(client, answer)
            else:
                await client.send({"ok": await answer})
        except RefusalError as error:
            await client.send({"error": {"kind": error.kind, "line": str(error)}})
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:  # the disk's: it is this node's trouble, and no reason to end
            await client.send({"error": {"kind": "refused", "line": f"this node cannot do that now: {error}"}})
        except (RemoteProtocolError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            await client.send({"error": {"kind": "usage", "line": f"the request makes no sense: {error!r}"}})
        except Exception as error:
            _logger.exception("a request cannot be answered")
            await client.send({"error": {"kind": "refused", "line": f"a bug in this node, see its log: {error!r}"}})

    async def _stream(self, client: Client, items: AsyncGenerator[object, None]) -> None:
        """Items until they end or the client has gone."""
        gone = asyncio.ensure_future(client.gone())
        waits: list[asyncio.Future[Any]] = [gone]
        try:
            while True:
                item = asyncio.ensure_future(anext(items))
                waits = [item, gone]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if not item.done():
                    return
                try:
                    await client.send({"item": item.result()})
                except StopAsyncIteration:
                    await client.send({"ok": None})
                    return
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            await items.aclose()

    def close(self) -> None:
        """No more clients."""
        for server in self._servers:
            server.close()
