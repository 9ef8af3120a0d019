"""What strangers send: each gets an answer or its connection's end, in time, and nobody else is the worse for it."""

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dmi_node.gateway import http
from dmi_node.gateway.http import Exchange, HttpError, Request, Server
from dmi_protocol import limits
from tests.node.gateway.served import HOST, answer, head, until


class Echo:
    """Answers with what was sent. What is ``held`` waits."""

    def __init__(self) -> None:
        self.server = Server(self.handle, self.failed, None)
        self.errors: list[BaseException] = []
        self.seen: list[Request] = []
        self.held: list[Exchange] = []
        self.gone = 0

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def handle(self, request: Request, exchange: Exchange) -> None:
        self.seen.append(request)
        exchange.on_gone = self._gone
        if request.path == b"/hold":
            self.held.append(exchange)
        elif request.path == b"/large":
            exchange.reply(200, bytes(32 << 20))
        elif request.path == b"/some":
            exchange.reply(200, bytes(3_000))
        elif request.path == b"/bug":
            raise ZeroDivisionError("oops")
        elif request.path == b"/no":
            raise HttpError(429, "later", retry_after_s=7)
        else:
            exchange.reply(200, request.content() or request.method)

    def _gone(self) -> None:
        self.gone += 1


@pytest.fixture
async def echo(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Echo]:
    found = Echo()
    monkeypatch.setattr(http, "_SWEEP_S", 0.02)
    monkeypatch.setattr(http, "_LINGER_S", 0.2)
    await found.server.listen(HOST, 0)
    yield found
    found.server.stop_listening()
    found.server.close()
    await until(lambda: not found.server.connections)


async def connect(echo: Echo) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, echo.server.port)


async def ask(echo: Echo, data: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await connect(echo)
    writer.write(data)
    found = await answer(reader)
    writer.close()
    return found


async def test_a_body_and_several_requests_on_one_connection(echo: Echo) -> None:
    reader, writer = await connect(echo)
    for body in (b"one", b"two"):
        writer.write(head("POST", "/", len(body)) + body)
        assert (await answer(reader))[2] == body
    writer.close()


async def test_requests_that_come_together_are_answered_in_order(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(b"".join(head("POST", path, 1) + body for path, body in (("/hold", b"a"), ("/", b"b"), ("/", b"c"))))
    await asyncio.sleep(0.05)
    assert len(echo.seen) == 1, "the first is not answered yet"
    echo.held[0].reply(200, b"first")
    assert [(await answer(reader))[2] for _ in range(3)] == [b"first", b"b", b"c"]
    writer.close()


async def test_chunks_are_put_together(echo: Echo) -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert (await ask(echo, head("POST", "/", Transfer_Encoding="chunked") + chunks))[2] == b"abcde"


async def test_who_asks_whether_to_continue_is_told_so(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(head("POST", "/", 3, Expect="100-continue"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await answer(reader))[2] == b"abc"
    writer.close()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"x" * 99, mtime=0)),
        ("deflate", zlib.compress(b"x" * 99)),
        ("deflate", zlib.compress(b"x" * 99)[2:-4]),
        ("identity", b"x" * 99),
    ],
)
async def test_packed_bodies_are_unpacked(echo: Echo, encoding: str, packed: bytes) -> None:
    assert (await ask(echo, head("POST", "/", len(packed), Content_Encoding=encoding) + packed))[2] == b"x" * 99


@pytest.mark.parametrize(
    ("encoding", "packed", "status"),
    [
        ("gzip", b"not packed at all", 400),
        ("gzip", gzip.compress(b"x" * 99, mtime=0)[:-9], 400),
        ("deflate", b"\xff\xff", 400),
        ("br", b"x", 415),
    ],
)
async def test_what_is_not_packed_as_it_says_is_refused(echo: Echo, encoding: str, packed: bytes, status: int) -> None:
    found = await ask(echo, head("POST", "/", len(packed), Content_Encoding=encoding) + packed)
    assert found[0] == status
    assert b"Content-Encoding" in found[2]


async def test_a_bomb_is_not_unpacked(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES", 1 << 20)
    bomb = gzip.compress(bytes(64 << 20), 9)
    assert len(bomb) < 1 << 20
    assert (await ask(echo, head("POST", "/", len(bomb), Content_Encoding="gzip") + bomb))[0] == 413


async def test_large_answers_are_packed_for_who_wants_that(echo: Echo) -> None:
    body = b"x" * 5_000
    status, headers, packed = await ask(echo, head("POST", "/", len(body), Accept_Encoding="gzip, deflate") + body)
    assert (status, headers["content-encoding"], gzip.decompress(packed)) == (200, "gzip", body)
    _, headers, packed = await ask(echo, head("POST", "/", len(body), Accept_Encoding="deflate") + body)
    assert (headers["content-encoding"], zlib.decompress(packed)) == ("deflate", body)


async def test_a_body_that_claims_too_much_is_refused_before_it_comes(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES", 1_000)
    status, headers, _ = await ask(echo, head("POST", "/", 1_001))
    assert (status, headers["connection"]) == (413, "close")
    chunks = b"400\r\n" + b"x" * 1_024 + b"\r\n"
    assert (await ask(echo, head("POST", "/", Transfer_Encoding="chunked") + chunks))[0] == 413
    assert echo.server.received_bytes == 0


async def test_all_bodies_together_are_bounded(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODIES_BYTES", 1_500)
    reader, writer = await connect(echo)
    writer.write(head("POST", "/", 1_001) + b"x" * 1_000)
    await until(lambda: echo.server.received_bytes >= 1_000)
    status, headers, _ = await ask(echo, head("POST", "/", 1_001) + b"x" * 1_000)
    assert (status, "retry-after" in headers) == (503, True)
    writer.write(b"x")
    assert (await answer(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_request_is_refused(echo: Echo, data: bytes) -> None:
    status, headers, body = await ask(echo, data)
    assert (status, headers["connection"]) == (400, "close")
    assert b"error" in body


async def test_a_head_without_an_end_is_refused(echo: Echo) -> None:
    status, _, _ = await ask(echo, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
    assert status == 431


OFFER = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"}
"""As the JDK's client sends it with its first request, and ``curl --http2``."""


@pytest.mark.parametrize("cuts", [1, 2, 7, 1_000])
async def test_the_offer_of_another_protocol_is_passed_over(echo: Echo, cuts: int) -> None:
    """Body and all, however it comes, and whatever comes behind it (RFC 9110, 7.8)."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in OFFER.items()).encode()
    whole = b"POST /a HTTP/1.1\r\nHost: x\r\n" + lines + b"Content-Length: 5\r\n\r\nhello"
    chunked = (
        b"POST /b HTTP/1.1\r\nHost: x\r\n"
        + lines
        + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    )
    sent = whole + chunked + b"GET /c HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + head("GET", "/d", Connection="close")
    reader, writer = await connect(echo)
    size = -(-len(sent) // cuts)
    for place in range(0, len(sent), size):
        writer.write(sent[place : place + size])
        await writer.drain()
        await asyncio.sleep(0)
    found = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert found.count(b"HTTP/1.1 200 OK") == 4
    assert [request.path for request in echo.seen] == [b"/a", b"/b", b"/c", b"/d"]
    assert [request.body for request in echo.seen] == [b"hello", b"hello", b"", b""]
    assert b"upgrade" not in echo.seen[0].headers


async def test_a_tunnel_is_refused(echo: Echo) -> None:
    status, _, _ = await ask(echo, b"CONNECT host:80 HTTP/1.1\r\nHost: host\r\n\r\n")
    assert status == 405


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost:", head("POST", "/", 10) + b"abc"])
async def test_what_does_not_come_is_not_waited_for(echo: Echo, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(limits, "HEADER_MS", 100)
    reader, writer = await connect(echo)
    writer.write(sent)
    if sent:
        assert (await answer(reader))[0] == 408
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_slow_senders_are_many_and_others_are_served(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_MS", 2_500)
    slow = []
    for _ in range(500):
        slow.append(await connect(echo))
        slow[-1][1].write(b"POST / HTTP/1.1\r\nHost: x\r\n")
    assert (await asyncio.wait_for(ask(echo, head("POST", "/", 1) + b"x"), 1))[0] == 200
    for reader, writer in slow:
        assert (await answer(reader))[0] == 408
        writer.close()
    await until(lambda: not echo.server.connections)


async def test_too_many_connections_are_refused(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GATEWAY_CONNECTIONS", 2)
    kept = [await connect(echo) for _ in range(2)]
    await until(lambda: len(echo.server.connections) == 2)
    reader, writer = await connect(echo)
    assert (await answer(reader))[0] == 503
    for _, each in (*kept, (reader, writer)):
        each.close()


async def test_who_hangs_up_is_not_answered(echo: Echo) -> None:
    _, writer = await connect(echo)
    writer.write(head("POST", "/hold", 1) + b"x")
    await until(lambda: echo.held)
    writer.close()
    await until(lambda: echo.gone == 1)
    echo.held[0].reply(200, b"too late")


async def test_a_bug_is_one_requests_and_the_connection_goes_on(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(head("GET", "/bug") + head("GET", "/"))
    assert (await answer(reader))[0] == 500
    assert (await answer(reader))[2] == b"GET"
    assert [type(error) for error in echo.errors] == [ZeroDivisionError]
    writer.close()


async def test_a_refusal_says_when_to_come_again(echo: Echo) -> None:
    status, headers, body = await ask(echo, head("GET", "/no"))
    assert (status, headers["retry-after"], body) == (429, "7", b'{"error": "later"}')


async def test_head_has_no_body(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(head("HEAD", "/", Connection="close"))
    found = await asyncio.wait_for(reader.read(), 5)
    assert found.endswith(b"\r\n\r\n")
    assert b"Content-Length: 4" in found
    writer.close()


async def test_an_old_client_gets_its_answer_and_the_end(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await answer(reader))[1]["connection"] == "close"
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_gateway_that_leaves_answers_what_it_has(echo: Echo) -> None:
    idle, idler = await connect(echo)
    reader, writer = await connect(echo)
    writer.write(head("POST", "/hold", 1) + b"x")
    await until(lambda: echo.held)
    echo.server.stop_listening()
    assert await asyncio.wait_for(idle.read(), 5) == b""
    echo.held[0].reply(200, b"last")
    assert (await answer(reader))[2] == b"last"
    with pytest.raises(OSError):
        await connect(echo)
    writer.close()
    idler.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_with_a_certificate_it_speaks_tls(tmp_path: Path) -> None:
    made = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=x -keyout k.pem -out c.pem"
    subprocess.run(["openssl", "req", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    echo, ours = Echo(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    await echo.server.listen(HOST, 0, ours)
    theirs = ssl.create_default_context(cafile=tmp_path / "c.pem")
    theirs.check_hostname = False
    reader, writer = await asyncio.open_connection(HOST, echo.server.port, ssl=theirs)
    writer.write(head("POST", "/", 3) + b"abc")
    assert (await answer(reader))[2] == b"abc"
    writer.write(b"no request\r\n\r\n")
    assert (await answer(reader))[0] == 400
    writer.close()
    plain, plainly = await asyncio.open_connection(HOST, echo.server.port)
    plainly.write(head("GET", "/"))
    assert b"HTTP" not in await asyncio.wait_for(plain.read(), 5)
    plainly.close()
    echo.server.stop_listening()
    echo.server.close()
    await until(lambda: not echo.server.connections)


MIB = 1 << 20


async def taken_slowly(reader: asyncio.StreamReader, most: int = 1 << 30) -> int:
    """How much of an answer comes, read in pieces with pauses."""
    found = 0
    while found < most and (piece := await asyncio.wait_for(reader.read(MIB // 2), 20)):
        found += len(piece)
        await asyncio.sleep(0.005)
    return found


async def asked_slowly(echo: Echo, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Somebody whose kernel takes little at a time."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    line.setblocking(False)  # noqa: FBT003 (the library's signature)
    await asyncio.get_running_loop().sock_connect(line, (HOST, echo.server.port))
    reader, writer = await asyncio.open_connection(sock=line, limit=1 << 16)
    writer.write(data)
    return reader, writer


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_an_answer_is_whole_however_slowly_it_is_taken(echo: Echo, connection: str) -> None:
    """Also where the connection ends behind it, and long after that has been said."""
    reader, writer = await asked_slowly(echo, head("GET", "/large", Connection=connection))
    first = await reader.read(1_000)
    await asyncio.sleep(0.5)  # longer than it lingers
    length = int(first.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    wanted = len(first.partition(b"\r\n\r\n")[0]) + 4 + length - len(first)
    assert await taken_slowly(reader, wanted) == wanted
    if connection == "close":
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_who_stops_taking_is_given_up(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TAKE_MS", 300)
    reader, writer = await asked_slowly(echo, head("GET", "/large"))
    await asyncio.sleep(0.1)
    assert len(echo.server.connections) == 1
    await until(lambda: not echo.server.connections)
    assert await taken_slowly(reader) < 32 * MIB
    writer.close()


async def test_answers_are_taken_before_a_server_ends(echo: Echo) -> None:
    reader, writer = await asked_slowly(echo, head("GET", "/large"))
    first = await reader.read(1_000)
    echo.server.stop_listening()
    ending = asyncio.ensure_future(echo.server.until_taken(20))
    await asyncio.sleep(0.1)
    assert not ending.done()
    length = int(first.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    wanted = len(first.partition(b"\r\n\r\n")[0]) + 4 + length - len(first)
    assert await taken_slowly(reader, wanted) == wanted
    await asyncio.wait_for(ending, 5)
    writer.close()


async def test_it_does_not_end_before_those_who_wait_are_answered_but_for_so_long_alone(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(head("GET", "/hold"))
    await until(lambda: bool(echo.held))
    echo.server.stop_listening()
    began = asyncio.get_running_loop().time()
    await echo.server.until_taken(0.2)
    assert asyncio.get_running_loop().time() - began >= 0.19
    echo.held[0].reply(200, b"late")
    await asyncio.wait_for(echo.server.until_taken(20), 5)
    assert (await answer(reader))[2] == b"late"
    writer.close()


async def test_who_asks_and_does_not_read_is_not_read_from(echo: Echo) -> None:
    """Neither requests nor answers pile up here: they stay with whoever sends."""
    reader, writer = await asked_slowly(echo, b"")
    sent = 0
    for _ in range(1_000):
        writer.write(head("GET", "/some") * 1_000)
        sent += 1_000
        try:
            await asyncio.wait_for(writer.drain(), 0.1)
        except TimeoutError:
            break
    else:
        pytest.fail("it took all that was sent")
    (connection,) = echo.server.connections
    assert connection._untaken() < 2 * limits.UNTAKEN_BYTES
    assert len(echo.seen) < sent
    done = len(echo.seen)
    await asyncio.sleep(0.1)
    assert len(echo.seen) == done, "nothing goes on"
    await taken_slowly(reader, 4 * MIB)
    assert len(echo.seen) > done, "and it goes on as soon as it reads"
    writer.close()


@pytest.mark.parametrize("line", [b"X-%d: " + b"a" * 1_000 + b"\r\n", b"b" * 1_000])
async def test_trailers_have_a_bound_and_mean_nothing(echo: Echo, line: bytes) -> None:
    begin = head("POST", "/", Transfer_Encoding="chunked") + b"3\r\nabc\r\n0\r\n"
    assert (await ask(echo, begin + b"Authorization: Bearer x\r\nTimeout: 9\r\n\r\n"))[0] == 200
    assert not {b"authorization", b"timeout"} & echo.seen[0].headers.keys()
    reader, writer = await connect(echo)
    writer.write(begin)
    for number in range(1_000):
        writer.write(line % number if b"%d" in line else line)
    assert (await answer(reader))[0] == 431
    writer.close()


async def test_sizes_of_chunks_have_a_bound(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(head("POST", "/", Transfer_Encoding="chunked") + b"1;" + b"x" * 1_000_000)
    assert (await answer(reader))[0] == 431
    writer.close()


async def test_many_small_chunks_are_a_body(echo: Echo) -> None:
    body = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    assert len((await ask(echo, head("POST", "/", Transfer_Encoding="chunked") + body))[2]) == 50_000


async def test_who_may_not_ask_is_told_before_a_body_is_taken(echo: Echo) -> None:
    def admit(request: Request) -> None:
        if b"authorization" not in request.headers:
            raise HttpError(401, "a token is wanted")

    echo.server.admit = admit
    reader, writer = await connect(echo)
    writer.write(head("POST", "/", 100 * MIB))
    status, headers, _ = await answer(reader)
    assert (status, headers["connection"], headers["www-authenticate"]) == (401, "close", "bearer")
    assert (echo.server.received_bytes, echo.seen) == (0, [])
    writer.close()
    assert (await ask(echo, head("POST", "/", 3, Authorization="Bearer x") + b"abc"))[2] == b"abc"
    assert (await ask(echo, head("POST", "/", Transfer_Encoding="chunked") + b"3\r\nabc\r\n"))[0] == 401
    assert (await ask(echo, head("POST", "/", 3, **OFFER) + b"abc"))[0] == 401, "whatever else it offers"


async def test_what_is_no_request_does_not_take_the_answer_of_the_one_before(echo: Echo) -> None:
    reader, writer = await connect(echo)
    writer.write(head("POST", "/hold", 1) + b"a" + b"\x00bad\r\n\r\n")
    await until(lambda: bool(echo.held))
    echo.held[0].reply(200, b"first")
    assert (await answer(reader))[2] == b"first"
    status, headers, _ = await answer(reader)
    assert (status, headers["connection"]) == (400, "close")
    writer.close()
