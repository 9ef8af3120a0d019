"""A whole node in this process: what it founds, what it answers, what it leaves."""

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dmi_node.config import Config, ConfigError
from dmi_node.daemon import CRASHED, DISK_FAILED, Changes, serve
from dmi_node.home import HomeBusyError
from dmi_node.storage.journal import JournalError, has_fact
from tests.node.client import ask, call

pytestmark = pytest.mark.processes

SECONDS = 20
CONFIG = Config(name="solo", listen="127.0.0.1:0")
SPEC = {"kind": "training", "name": "job", "script": "job.py"}


@asynccontextmanager
async def node(root: Path, config: Config = CONFIG) -> AsyncIterator[Path]:
    """A node on the home at ``root``, ready; gives its control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
        notify.bind(f"\0dmi-test-{os.getpid()}-{id(notify)}")
        environment = {"NOTIFY_SOCKET": "@" + str(notify.getsockname()[1:], "ascii")}
        life = asyncio.create_task(serve(root, config, environment))
        try:
            async with asyncio.timeout(SECONDS):
                heard = asyncio.ensure_future(ready(notify))
                await asyncio.wait([life, heard], return_when=asyncio.FIRST_COMPLETED)
                if life.done():
                    heard.cancel()
                    await life
                yield root / "control.sock"
                if not life.done():
                    await ask(root / "control.sock", "stop")
                await life
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
        assert not (root / "control.sock").exists()


async def ready(notify: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(notify, 1000) != b"READY=1":
        continue


async def status(door: Path) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(door, "status"))["ok"]
    return found


async def has_quorum(door: Path) -> dict[str, Any]:
    while not (seen := await status(door))["quorum"]:
        continue
    return seen


async def test_what_a_node_is_stands_in_the_state_file_itself(tmp_path: Path) -> None:
    """Whoever lost the log beside it would found a mesh of its own."""
    async with node(tmp_path / "home"):
        (tmp_path / "copy.sqlite").write_bytes((tmp_path / "home" / "state.sqlite").read_bytes())
    assert has_fact(tmp_path / "copy.sqlite", "identity")


async def test_a_member_is_where_the_others_know_it(tmp_path: Path) -> None:
    """Any port is the one that it had; another one is told to the mesh."""
    async with node(tmp_path) as door:
        before = (await has_quorum(door))["members"][0]["address"]
    async with node(tmp_path) as door:
        assert (await has_quorum(door))["members"][0]["address"] == before
        socket.create_connection(("127.0.0.1", int(before.rpartition(":")[2])), timeout=5).close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        other = f"127.0.0.1:{free.getsockname()[1]}"
    async with node(tmp_path, Config(name="solo", listen=other)) as door, asyncio.timeout(SECONDS):
        while (await status(door))["members"][0]["address"] != other:
            continue


async def test_a_new_home_founds_a_mesh_of_one_and_stays_what_it_was(tmp_path: Path) -> None:
    async with node(tmp_path) as door:
        first = await has_quorum(door)
        assert [first["node"], first["coordinator"]] == ["solo", "solo"]
        (member,) = first["members"]
        assert (member["name"], member["state"], member["voter"], member["pid"]) == ("solo", "alive", True, os.getpid())
        assert first["jobs"] == []
        assert first["refused"] == {}
        assert (tmp_path / "node.key_secret").stat().st_mode & 0o777 == 0o600
        assert (await ask(door, "version"))["ok"]["version"] == member["version"]
        assert (await ask(door, "roles"))["ok"] == []
    other = Config(name="other", join="dmi-nonsense")
    async with node(tmp_path, other) as door:
        again = await has_quorum(door)
        assert [again["mesh"], again["node"]] == [first["mesh"], "solo"]
        assert again["members"][0]["address"] == member["address"]
        assert again["term"] > first["term"]


async def test_a_home_has_one_daemon(tmp_path: Path) -> None:
    async with node(tmp_path) as door:
        with pytest.raises(HomeBusyError):
            await serve(tmp_path, CONFIG, {})
        assert (await status(door))["node"] == "solo"


async def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--advertise"):
        await serve(tmp_path / "a", Config(listen="0.0.0.0:0"), {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await serve(tmp_path / "b", Config(listen=f"127.0.0.1:{port}"), {})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(JournalError, match=r"state\.sqlite"):
        await serve(tmp_path / "c", CONFIG, {})
    async with node(tmp_path / "a"):
        pass


@pytest.mark.parametrize(
    ("verb", "arguments", "kind"),
    [
        ("why", {"job": "nothing"}, "unknown"),
        ("cancel", {"job": "nothing", "request": "r"}, "unknown"),
        ("cancel", {"job": "nothing", "request": ""}, "usage"),
        ("logs", {"job": "nothing", "follow": False}, "unknown"),
        ("export", {"job": "nothing"}, "unknown"),
        ("expel", {"node": "nobody"}, "unknown"),
        ("invite", {"ttl_s": -1}, "usage"),
        ("invite", {"ttl_s": 2**63}, "usage"),
        ("submit", {"request": "r", "spec": SPEC | {"workers": 2}, "bundle": "0" * 64, "size": 1}, "refused"),
        ("submit", {"request": "r", "spec": SPEC, "bundle": "../" + "0" * 61, "size": 1}, "usage"),
        ("submit", {"request": "r" * 1000, "spec": SPEC, "bundle": "0" * 64, "size": 1}, "usage"),
        ("submit", {"request": "r", "spec": None, "bundle": "0" * 64, "size": 1}, "usage"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_refusal_is_one_line(tmp_path: Path, verb: str, arguments: dict[str, Any], kind: str) -> None:
    async with node(tmp_path) as door:
        await has_quorum(door)
        error = (await ask(door, verb, **arguments))["error"]
        assert error["kind"] == kind
        assert "\n" not in error["line"]


async def upload(door: Path, request: str, data: bytes, said: bytes) -> tuple[bool, Any]:
    """Submit a bundle that is said to be ``said`` and is ``data``; was it needed, and what came of it."""
    async with call(door) as caller:
        size, blob = len(said), hashlib.sha256(said).hexdigest()
        caller.say({"verb": "submit", "args": {"request": request, "spec": SPEC, "bundle": blob, "size": size}})
        needed = (await caller.hear())["need"] == [blob]
        if needed:
            caller.say({"chunk": data})
            caller.say({"end": True})
        return needed, await caller.hear()


async def test_a_job_is_submitted_once_and_its_end_is_told(tmp_path: Path) -> None:
    async with node(tmp_path) as door:
        await has_quorum(door)
        needed, answer = await upload(door, "request", b"no bundle", b"no bundle")
        assert needed
        job = answer["ok"]["id"]
        again = await upload(door, "request", b"", b"no bundle")
        assert again == (False, {"ok": {"id": job}})
        assert [seen["id"] for seen in (await status(door))["jobs"]] == [job]
        async with call(door) as caller:
            caller.say({"verb": "events", "args": {"job": job}})
            seen = []
            while "item" in (heard := await caller.hear()):
                seen.append(heard["item"]["state"])
        assert seen[-1] == "failed"
        why = (await ask(door, "why", job="job"))["ok"]
        assert why["job"] == job
        assert "unpacked" in why["sentence"] + (why["detail"] or "")
        assert (await ask(door, "export", job=job))["error"]["kind"] == "refused"


async def test_a_bundle_that_arrives_damaged_leaves_nothing(tmp_path: Path) -> None:
    async with node(tmp_path) as door:
        await has_quorum(door)
        for data in (b"other bundle", b"a bundle that is far longer than it was said to be"):
            _, answer = await upload(door, "request", data, b"some bundle.")
            assert answer["error"]["kind"] == "usage"
        while list((tmp_path / "blobs").iterdir()):
            await asyncio.sleep(0)
        assert (await status(door))["jobs"] == []


async def test_an_invitation_names_this_node(tmp_path: Path) -> None:
    async with node(tmp_path) as door:
        seen = await has_quorum(door)
        made = (await ask(door, "invite", ttl_s=60))["ok"]
        assert made["token"].startswith("dmi-")
        other = tmp_path / "other"
        async with node(other, Config(name="joiner", listen="127.0.0.1:0", join=made["token"])) as joiner:
            while [m["state"] for m in (await status(joiner))["members"]] != ["alive", "alive"]:
                continue
            assert (await status(joiner))["mesh"] == seen["mesh"]


async def test_nobody_misses_a_change() -> None:
    changed = Changes()
    since = changed.count
    changed.happened()
    await asyncio.wait_for(changed.wait(since), 1)
    waiting = asyncio.ensure_future(changed.wait(changed.count))
    await asyncio.sleep(0)
    changed.happened()
    await asyncio.wait_for(waiting, 1)


CRASH = """
import sys
from dmi_node.daemon import crash
from dmi_node.storage.journal import JournalError
try:
    raise JournalError("the disk is gone") if sys.argv[1] == "disk" else AssertionError("impossible")
except Exception as error:
    crash(error)
"""


@pytest.mark.parametrize(
    ("what", "code", "said"), [("disk", DISK_FAILED, "the disk is gone"), ("bug", CRASHED, "impossible")]
)
def test_a_crash_has_its_code_and_only_a_bug_has_a_traceback(what: str, code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, what], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].endswith(said)
    assert ("Traceback" in done.stderr) == (what == "bug")


def test_the_daemon_imports_nothing_heavy() -> None:
    """Not even the command's own modules that a running node needs bring these in."""
    script = (
        "import json, sys, dmi_node.__main__; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "numpy", "rich", "safetensors"} & set(json.loads(done.stdout))
