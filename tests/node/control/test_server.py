"""The door, with verbs of the test's behind it."""

import asyncio
import errno
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dmi_node.control import server as module
from dmi_node.control.server import Client, ControlServer, RefusalError, Verb
from dmi_node.tasks import Tasks
from dmi_protocol import limits
from tests.node.client import ask, call

SECONDS = 20


class Verbs:
    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def table(self) -> dict[str, Verb]:
        return {name: getattr(self, name) for name in ("echo", "refuse", "need", "full", "count", "wait")}

    async def echo(self, client: Client, args: dict[str, Any]) -> object:
        return args

    async def refuse(self, client: Client, args: dict[str, Any]) -> object:
        raise RefusalError("unknown", "there is no such thing")

    async def need(self, client: Client, args: dict[str, Any]) -> object:
        return args["needed"] + int(args["number"])

    async def full(self, client: Client, args: dict[str, Any]) -> object:
        raise OSError(errno.ENOSPC, "No space left on device", "/blobs/x")

    async def count(self, client: Client, args: dict[str, Any]) -> AsyncGenerator[object, None]:
        for number in range(args["to"]):
            yield number
        if args.get("then"):
            raise RefusalError("refused", "no further")

    async def wait(self, client: Client, args: dict[str, Any]) -> AsyncGenerator[object, None]:
        try:
            yield "here"
            await asyncio.Event().wait()
        finally:
            self.closed.set()


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Verbs]:
    tasks, verbs = Tasks(), Verbs()
    server = ControlServer(verbs.table(), tasks)
    await server.listen(path)
    failed = asyncio.ensure_future(tasks.watch())
    try:
        async with asyncio.timeout(SECONDS):
            yield verbs
            assert not failed.done(), failed.exception()
    finally:
        server.close()
        await tasks.close()
        failed.cancel()
        await asyncio.gather(failed, return_exceptions=True)


async def test_a_request_has_one_answer(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock"):
        assert await ask(tmp_path / "control.sock", "echo", a=1) == {"ok": {"a": 1}}
        refused = await ask(tmp_path / "control.sock", "refuse")
        assert refused == {"error": {"kind": "unknown", "line": "there is no such thing"}}


async def test_a_disk_that_takes_nothing_is_refused_in_a_line_and_ends_no_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock"):
        refused = (await ask(tmp_path / "control.sock", "full"))["error"]
        assert refused["kind"] == "refused"
        assert "No space left on device" in refused["line"]
        assert await ask(tmp_path / "control.sock", "echo") == {"ok": {}}


async def test_the_door_is_for_its_owner_and_group_however_long_its_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "control.sock").write_text("left behind by a node that was killed")
    async with serving(deep / "control.sock"):
        assert stat.S_IMODE((deep / "control.sock").stat().st_mode) == 0o660
        assert await ask(deep / "control.sock", "echo") == {"ok": {}}


async def test_a_stream_ends_with_its_items_or_with_a_refusal(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock"), call(tmp_path / "control.sock") as caller:
        caller.say({"verb": "count", "args": {"to": 2}})
        assert [await caller.hear() for _ in range(3)] == [{"item": 0}, {"item": 1}, {"ok": None}]
    async with serving(tmp_path / "control.sock"), call(tmp_path / "control.sock") as caller:
        caller.say({"verb": "count", "args": {"to": 1, "then": True}})
        assert await caller.hear() == {"item": 0}
        assert (await caller.hear())["error"]["line"] == "no further"


async def test_a_stream_ends_with_its_client(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as verbs:
        async with call(tmp_path / "control.sock") as caller:
            caller.say({"verb": "wait", "args": {}})
            assert await caller.hear() == {"item": "here"}
        await verbs.closed.wait()


async def test_a_stream_ends_with_the_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path / "control.sock") as verbs, call(tmp_path / "control.sock") as caller:
        caller.say({"verb": "wait", "args": {}})
        assert await caller.hear() == {"item": "here"}
    await asyncio.wait_for(verbs.closed.wait(), SECONDS)


SENSELESS: list[Callable[[], object]] = [
    lambda: None,
    lambda: [1, 2],
    lambda: "status",
    lambda: {"verb": "echo"},
    lambda: {"verb": "echo", "args": None},
    lambda: {"verb": "echo", "args": [1]},
    lambda: {"verb": ["echo"], "args": {}},
    lambda: {"verb": "nonsense", "args": {}},
    lambda: {"verb": "need", "args": {}},
    lambda: {"verb": "need", "args": {"needed": "a", "number": 1}},
    lambda: {"verb": "need", "args": {"needed": 1, "number": "a"}},
    lambda: {"verb": "need", "args": {"needed": 1, "number": float("inf")}},
    lambda: {"verb": "count", "args": {"to": "two"}},
]


@pytest.mark.parametrize("made", range(len(SENSELESS)))
async def test_a_request_without_sense_is_answered_and_the_node_goes_on(tmp_path: Path, made: int) -> None:
    async with serving(tmp_path / "control.sock"):
        async with call(tmp_path / "control.sock") as caller:
            caller.say(SENSELESS[made]())
            assert (await caller.hear())["error"]["kind"] == "usage"
            assert await caller.is_closed()
        assert await ask(tmp_path / "control.sock", "echo") == {"ok": {}}


@pytest.mark.parametrize("data", [b"\xc1", b"\x81\xa4verb", (limits.MESSAGE_BYTES + 1).to_bytes(4, "big")])
async def test_bytes_without_sense_are_answered_and_the_node_goes_on(tmp_path: Path, data: bytes) -> None:
    async with serving(tmp_path / "control.sock"):
        async with call(tmp_path / "control.sock") as caller:
            caller.say_raw(data if len(data) == 4 else len(data).to_bytes(4, "big") + data)
            assert (await caller.hear())["error"]["kind"] == "usage"
        async with call(tmp_path / "control.sock") as caller:
            caller.say_raw(b"\0\0")
        assert await ask(tmp_path / "control.sock", "echo") == {"ok": {}}


async def test_nobody_waits_for_a_silent_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REQUEST_S", 0.05)
    async with serving(tmp_path / "control.sock"), call(tmp_path / "control.sock") as caller:
        assert await caller.is_closed()


async def test_clients_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLIENTS", 1)
    path = tmp_path / "control.sock"
    async with serving(path) as verbs:
        async with call(path) as first:
            first.say({"verb": "wait", "args": {}})
            assert await first.hear() == {"item": "here"}
            async with call(path) as second:
                assert await second.is_closed()
        await verbs.closed.wait()
        while True:  # the first one's place is free a moment after its stream has ended
            async with call(path) as third:
                third.say({"verb": "echo", "args": {}})
                try:
                    assert await third.hear() == {"ok": {}}
                except (asyncio.IncompleteReadError, ConnectionError):
                    continue
                break
