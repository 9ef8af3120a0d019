"""HTTP/1.1 on asyncio: httptools parses, and this bounds whatever a stranger may send, in bytes and in time.

One request of a connection is answered after the other. A handler gets a ``Request`` and an ``Exchange``, and replies when it
can: nothing is awaited, so a request costs no task.
"""

import asyncio
import json
import ssl
import zlib
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools

from dmi_protocol import limits

_SWEEP_S = 1.0
_HANDSHAKE_S = 10.0
"""Of TLS."""
_LINGER_S = 2.0
"""A connection that is closed after an answer is read for so long, or the answer would be lost with what is still coming."""
_TAKEN_S = 0.02
"""Whether the last answers are taken is looked at so often."""
_PLAIN_BYTES = 1_400
"""Smaller answers are not packed."""
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
JSON = b"application/json"
OCTETS = b"application/octet-stream"


class HttpError(Exception):
    """The request is answered with this status, and one line that says why."""

    def __init__(self, status: int, text: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class Request:
    """Names of headers are in lower case; of several with one name the last counts. ``body`` is as it was sent."""

    __slots__ = ("body", "headers", "method", "path")

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    def content(self) -> bytes:
        """The body, unpacked. Raises ``HttpError``."""
        encoding = self.headers.get(b"content-encoding", b"").strip().lower()
        if encoding in {b"", b"identity"}:
            return self.body
        if encoding not in {b"gzip", b"deflate"}:
            raise HttpError(415, f"Content-Encoding {encoding.decode('latin-1')!r} is not known; gzip and deflate are")
        return _unpacked(self.body, encoding)


def _unpacked(body: bytes, encoding: bytes) -> bytes:
    """No more than a body may have, whatever it claims. (What is called deflate is a zlib stream, or, by mistake, a raw one.)"""
    for bits in (31,) if encoding == b"gzip" else (15, -15):
        unpacker = zlib.decompressobj(bits)
        try:
            found = unpacker.decompress(body, limits.BODY_BYTES + 1)
        except zlib.error:
            continue
        if len(found) > limits.BODY_BYTES:
            raise HttpError(413, f"the body has more than {limits.BODY_BYTES} bytes once it is unpacked")
        if unpacker.eof:
            return found
        break
    raise HttpError(400, f"the body is no whole {encoding.decode('ascii')} stream, as Content-Encoding says")


class Exchange:
    """One request, and its answer. ``on_gone`` is called when nobody waits for the answer any more."""

    __slots__ = ("_connection", "_is_head", "_keep_alive", "_packing", "is_over", "on_gone")

    def __init__(self, connection: "Connection", request: Request, *, keep_alive: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self._is_head = request.method == b"HEAD"
        accepted = request.headers.get(b"accept-encoding", b"")
        self._packing = b"gzip" if b"gzip" in accepted else b"deflate" if b"deflate" in accepted else b""
        self.is_over = False
        self.on_gone: Callable[[], None] | None = None

    def reply(
        self, status: int, body: bytes, kind: bytes = JSON, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Answer; once."""
        if self.is_over:
            return
        self.is_over = True
        if self._packing and len(body) >= _PLAIN_BYTES:
            packer = zlib.compressobj(1, wbits=31 if self._packing == b"gzip" else 15)
            body = packer.compress(body) + packer.flush()
            headers = (*headers, (b"Content-Encoding", self._packing), (b"Vary", b"Accept-Encoding"))
        self._connection.answer(
            head(status, len(body), kind, headers, keep_alive=self._keep_alive),
            b"" if self._is_head else body,
            keep_alive=self._keep_alive,
        )

    def json(self, value: Any, status: int = 200) -> None:
        """Answer with this."""
        self.reply(status, json.dumps(value, separators=(",", ":")).encode())

    def refuse(self, error: HttpError) -> None:
        """Answer with what is wrong."""
        headers = () if error.retry_after_s is None else ((b"Retry-After", b"%d" % error.retry_after_s),)
        if error.status == 401:
            headers = (*headers, (b"WWW-Authenticate", b"Bearer"))
        self.reply(error.status, error_body(str(error)), JSON, headers)


def error_body(text: str) -> bytes:
    """As the protocol says errors."""
    return json.dumps({"error": text}).encode()


def head(
    status: int, length: int, kind: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), *, keep_alive: bool
) -> bytes:
    """The head of an answer."""
    lines = [b"HTTP/1.1 %d %s" % (status, _PHRASES.get(status, b"")), b"Content-Type: " + kind]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"Content-Length: %d" % length)
    if not keep_alive:
        lines.append(b"Connection: close")
    return b"\r\n".join([*lines, b"", b""])


Handle = Callable[[Request, Exchange], None]


class Server:
    """``handle`` answers requests; what it raises as ``HttpError`` is the answer. ``admit`` raises one for who may not ask, from
    the head of a request alone: before its body is taken."""

    def __init__(
        self, handle: Handle, failed: Callable[[BaseException], None], admit: Callable[[Request], None] | None
    ) -> None:
        self.handle = handle
        self.admit = admit
        self.failed = failed
        """Hears what ``handle`` raises and should not."""
        self.connections: set[Connection] = set()
        self.received_bytes = 0
        """Of bodies that are not whole yet."""
        self.is_closing = False
        self.port = 0
        """Where it listens."""
        self._listener: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Raises ``OSError`` where the port is taken."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self),
            host,
            port,
            backlog=1_024,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE_S if tls else None,
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self._sweep()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.look(now)
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep)

    def stop_listening(self) -> None:
        """No more connections; those that there are end with the answer that they wait for."""
        self.is_closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.end_when_idle()

    async def until_taken(self, within_s: float) -> None:
        """Until every answer is made and taken by whoever waits for it, or the time is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        while loop.time() < end and any(c.is_awaited for c in self.connections):  # noqa: ASYNC110 (no event says so)
            await asyncio.sleep(_TAKEN_S)

    def close(self) -> None:
        """All connections end now."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client. What it sends is read as fast as it takes its answers, and no faster."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = Request()
        self._raw_headers: list[tuple[bytes, bytes]] = []
        """As they came, where the head is to be read once more."""
        self._header_bytes = 0
        self._is_upgrading = False
        """The head offers another protocol, which nobody wants: it is read again without the offer."""
        self._is_in_body = False
        self._framing_bytes = 0
        """Of a head; or what came of a body since the last piece of it: the sizes of chunks, and trailers."""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._waiting: deque[tuple[Request, bool] | HttpError] = deque()
        """What came before the one before it was answered: whole requests, and at the end perhaps what is none."""
        self._exchange: Exchange | None = None
        self._until = self._loop.time() + limits.HEADER_MS / 1000
        """When it is closed, unless an answer is being made, or taken."""
        self._is_between = True
        """Is nothing of a request here?"""
        self._is_deaf = False
        """What still comes is not looked at."""
        self._is_ending = False
        """It is closed once its answers are taken."""
        self._is_shut = False
        """And they are: it lingers."""
        self._is_beginning = False
        """A handler is called: whatever it answers, ``_go_on`` goes on."""
        self._untaken_bytes = 0
        """What of its answers it had not taken when it was looked at last."""
        self._taken_at = 0.0

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's
        self._transport.set_write_buffer_limits(limits.UNTAKEN_BYTES)
        self._server.connections.add(self)
        if len(self._server.connections) > limits.GATEWAY_CONNECTIONS:
            self._end_with(HttpError(503, "this gateway has too many connections", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._server.connections.discard(self)
        self._forget_body()
        self._waiting.clear()
        if self._exchange is not None and not self._exchange.is_over:
            self._exchange.is_over = True
            if self._exchange.on_gone is not None:
                self._exchange.on_gone()
        self._exchange = None

    def data_received(self, data: bytes) -> None:
        """Some bytes of requests."""
        if self._is_deaf:
            return
        self._framing_bytes += len(data)
        try:
            self._feed(data)
        except HttpError as error:
            self._end_with(error)
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error.__context__, HttpError) else None
            self._end_with(cause or HttpError(400, f"this is no HTTP/1.1 request: {error}"))
        else:
            if self._framing_bytes > limits.HEADER_BYTES:
                what = "what comes with a body" if self._is_in_body else "the head of a request"
                self._end_with(HttpError(431, f"{what} has more than {limits.HEADER_BYTES} bytes"))

    def _feed(self, data: bytes) -> None:
        """Who offers to speak another protocol goes on in HTTP/1.1 (RFC 9110, 7.8); the parser would stop behind the head, so it
        gets the head without the offer, and what came behind it."""
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                read = offer.args[0]
            else:
                return
            head, data = self._head_again(), data[read:]
            self._is_upgrading = False
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(head)

    def _head_again(self) -> bytes:
        version = self._parser.get_http_version().encode("ascii")
        lines = [self._request.method + b" " + self._request.path + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self._raw_headers if name.lower() != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def eof_received(self) -> bool:
        """It says nothing more, so it has hung up, and what it waits for is not computed; but what it takes now it may still
        take."""
        self._is_deaf = self._is_ending = True
        is_taking = self._exchange is None and self._untaken() > 0
        if is_taking and self._transport is not None and self._transport.can_write_eof():
            self._shut()
            return True
        return False

    def pause_writing(self) -> None:
        """It takes nothing: see ``_is_slow``."""

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._go_on()

    # httptools

    def on_message_begin(self) -> None:
        """A request begins."""
        self._request = Request()
        self._raw_headers, self._header_bytes = [], 0
        self._is_between = False
        self._until = self._loop.time() + limits.HEADER_MS / 1000

    def on_url(self, url: bytes) -> None:
        """A part of its address."""
        self._request.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; behind a body they are trailers, which mean nothing."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > limits.HEADER_BYTES:
            raise HttpError(431, f"the headers of a request have more than {limits.HEADER_BYTES} bytes")
        if not self._is_in_body:
            self._request.headers[name.lower()] = value
            self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._request.method = self._parser.get_method()
        if self._parser.should_upgrade():
            if self._request.method == b"CONNECT":
                raise HttpError(405, "CONNECT is not known here")
            self._is_upgrading = True
            return
        self._is_in_body, self._framing_bytes = True, 0
        headers = self._request.headers
        length = int(headers.get(b"content-length", b"0"))  # the parser takes digits only
        if length > limits.BODY_BYTES:
            raise HttpError(413, f"Content-Length: a body may have {limits.BODY_BYTES} bytes")
        if (length or b"transfer-encoding" in headers) and self._server.admit is not None:
            self._server.admit(self._request)  # before a body is taken from somebody who may not ask
        if headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_chunk_header(self) -> None:
        """A piece of a body begins."""
        self._framing_bytes = 0

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._framing_bytes = 0
        self._body.append(body)
        self._body_bytes += len(body)
        self._server.received_bytes += len(body)
        self._until += len(body) / limits.BODY_BYTES_PER_S
        if self._body_bytes > limits.BODY_BYTES:
            raise HttpError(413, f"a body may have {limits.BODY_BYTES} bytes")
        if self._server.received_bytes > limits.BODIES_BYTES:
            raise HttpError(503, "this gateway is receiving as much as it can", retry_after_s=1)

    def on_message_complete(self) -> None:
        """It is whole."""
        if self._is_upgrading:
            return
        request = self._request
        request.body = b"".join(self._body)
        self._forget_body()
        self._framing_bytes, self._is_in_body, self._is_between = 0, False, True
        self._until = self._loop.time() + limits.IDLE_MS / 1000
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._go_on()

    def _forget_body(self) -> None:
        self._server.received_bytes -= self._body_bytes
        self._body, self._body_bytes = [], 0

    # Answers

    def _untaken(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def _is_slow(self) -> bool:
        """It does not take what it has asked for, so nothing more is made, and nothing read."""
        return self._untaken() > limits.UNTAKEN_BYTES

    def _go_on(self) -> None:
        """Answer what waits, one after the other, as long as it takes the answers; read only when nothing waits."""
        while self._exchange is None and self._waiting and not self._is_slow and not self._is_shut:
            self._begin(self._waiting.popleft())
        if self._transport is None or self._transport.is_closing():
            return
        if self._exchange is None and not self._waiting and self._is_ending:
            self._shut()
        elif self._waiting or self._is_slow:
            self._transport.pause_reading()
        elif not self._is_shut:
            self._transport.resume_reading()

    def _begin(self, waiting: tuple[Request, bool] | HttpError) -> None:
        if isinstance(waiting, HttpError):
            body = error_body(str(waiting))
            headers = () if waiting.retry_after_s is None else ((b"Retry-After", b"%d" % waiting.retry_after_s),)
            if waiting.status == 401:
                headers = (*headers, (b"WWW-Authenticate", b"Bearer"))
            self._write(head(waiting.status, len(body), JSON, headers, keep_alive=False), body)
            self._is_ending = True
            return
        request, keep_alive = waiting
        keep_alive = keep_alive and not self._server.is_closing
        exchange = self._exchange = Exchange(self, request, keep_alive=keep_alive)
        self._is_beginning = True
        try:
            self._server.handle(request, exchange)
        except HttpError as error:
            exchange.refuse(error)
        except Exception as error:  # noqa: BLE001 (a bug of ours is one request's, and not all connections')
            self._server.failed(error)
            exchange.refuse(HttpError(500, f"the gateway failed: {type(error).__name__}: {error}"))
        finally:
            self._is_beginning = False

    def answer(self, head: bytes, body: bytes, *, keep_alive: bool) -> None:
        """Send it, and go on with the next request."""
        self._exchange = None
        if self._transport is None or self._transport.is_closing():
            return
        self._write(head, body)
        if not keep_alive:
            self._is_ending = self._is_deaf = True
            self._waiting.clear()
        if not self._is_beginning:
            self._go_on()

    def _write(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(head + body if len(body) < 1 << 16 else head)
        if len(body) >= 1 << 16:
            self._transport.write(body)
        self._taken_at = self._loop.time()
        self._untaken_bytes = self._untaken()
        self._until = self._taken_at + limits.IDLE_MS / 1000

    def _end_with(self, error: HttpError) -> None:
        """Whatever else would come is not understood, or not wanted; what came before it has its answers first."""
        self._forget_body()
        self._is_deaf = self._is_between = True
        self._waiting.append(error)
        self._go_on()

    def _shut(self) -> None:
        """All is answered: the other end is told so behind the last answer, which it takes first. It is read on for a while after
        that, or the answer would be lost with what is still coming."""
        self._is_deaf = self._is_ending = True
        if self._is_shut or self._transport is None:
            return
        self._is_shut = True
        self._until = self._loop.time() + _LINGER_S
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def end_when_idle(self) -> None:
        """Close it, if no request is here; an answer that is being made, or taken, is its last."""
        self._is_ending = True
        if self._exchange is None and not self._waiting and self._is_between:
            self._shut()

    @property
    def is_awaited(self) -> bool:
        """An answer is being made, or taken."""
        return self._exchange is not None or bool(self._waiting) or self._untaken() > 0

    def abort(self) -> None:
        """Close it now."""
        if self._transport is not None:
            self._transport.abort()

    def look(self, now: float) -> None:
        """Close it when its time is over: what is not whole by then never will be, and who takes nothing for long never will."""
        untaken = self._untaken()
        if untaken:
            if untaken != self._untaken_bytes:
                self._untaken_bytes, self._taken_at = untaken, now
            if now - self._taken_at >= limits.TAKE_MS / 1000:
                self.abort()
            if self._is_shut:
                self._until = now + _LINGER_S
        elif self._waiting:
            self._go_on()
        elif self._exchange is None and now >= self._until:
            if self._is_shut or self._is_between:
                self.abort()
            else:
                self._end_with(HttpError(408, "the request did not come in time"))
