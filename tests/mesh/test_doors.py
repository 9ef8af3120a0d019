"""Who is let in, and who is not: refused, logged once, counted in ``status``; and the mesh goes on."""

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial

import msgpack
import pytest
import zmq.asyncio

import dmi
from dmi_node.joining import Invitation, JoinError, redeem
from dmi_protocol.codec import seal
from dmi_protocol.messages.control import Join
from dmi_protocol.messages.membership import Nack
from dmi_wire.keys import KeyPair
from dmi_wire.link import Link
from tests.mesh.local import LocalMesh, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

MakeMesh = Callable[[int], LocalMesh]


def refused(mesh: LocalMesh, reason: str, index: int = 0) -> int:
    return int(dmi.connect(mesh.node(index)).status()["refused"].get(reason, 0))


def has_refused(mesh: LocalMesh, reason: str, times: int) -> bool:
    return refused(mesh, reason) == times


def address_and_key(mesh: LocalMesh, index: int) -> tuple[str, str]:
    member = next(m for m in mesh.status()["members"] if m["name"] == f"n{index}")
    return member["address"], (mesh.node(index) / "node.pub").read_text().strip()


async def say(mesh: LocalMesh, keys: KeyPair, text: bytes, done: Callable[[], bool]) -> None:
    """Say ``text`` to n0 under ``keys`` again and again until ``done``."""
    address, server = address_and_key(mesh, 0)
    context = zmq.asyncio.Context()
    link = Link(context, keys, address, server)  # type: ignore[arg-type]
    watch = asyncio.ensure_future(link.watch(lambda: None, lambda: None))
    try:
        async with asyncio.timeout(20):
            while not done():
                link.send(text)
                await asyncio.sleep(0)
    finally:
        watch.cancel()
        link.close()
        context.destroy(linger=0)


def log_of(mesh: LocalMesh, index: int = 0) -> str:
    return (mesh.node(index) / "daemon.log").read_text()


def test_a_stranger_is_counted_and_logged_once(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(1)
    stranger = KeyPair.make()
    asyncio.run(say(mesh, stranger, b"hello", lambda: refused(mesh, "stranger") >= 3))
    assert log_of(mesh).count(stranger.public) == 1
    assert mesh.status()["quorum"]


def test_an_invitation_works_once_and_not_when_it_is_old(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(1)
    token = json.loads(command("invite", "--json", home=mesh.node(0)).stdout)["token"]
    first, second = KeyPair.make(), KeyPair.make()
    join = Join("joiner", "127.0.0.1:9", first.public, witness=False)
    assert len(asyncio.run(redeem(token, join)).members) == 2
    with pytest.raises(JoinError, match="used already"):
        asyncio.run(redeem(token, Join("other", "127.0.0.1:9", second.public, witness=False)))
    until(lambda: refused(mesh, "stranger") > 0, 10, "the used key is counted")
    old = dmi.connect(mesh.node(0)).invite(ttl_s=1)
    past = partial(is_past, old["expires_unix"])
    until(past, 10, "the invitation expires")
    with pytest.raises(JoinError, match="expired"):
        asyncio.run(redeem(old["token"], Join("late", "127.0.0.1:9", second.public, witness=False)))
    assert refused(mesh, "invitation") > 0
    with pytest.raises(JoinError, match="not whole"):
        Invitation.of_token(token[:-3])


def is_past(unix: int) -> bool:
    return time.time() > unix + 1


async def is_refused_on_its_open_connection(mesh: LocalMesh, keys: KeyPair) -> None:
    """A member's connection is opened, the member is expelled, and that very connection is spoken on."""
    address, server = address_and_key(mesh, 0)
    context = zmq.asyncio.Context()
    link = Link(context, keys, address, server)  # type: ignore[arg-type]
    opened, closed = asyncio.Event(), asyncio.Event()
    watch = asyncio.ensure_future(link.watch(opened.set, closed.set))
    try:
        async with asyncio.timeout(30):
            await opened.wait()
            link.send(seal(Nack(1)))
            command("expel", "n2", home=mesh.node(0))
            until(lambda: [m["name"] for m in mesh.status()["members"]] == ["n0", "n1"], 10, "n2 is no member")
            assert refused(mesh, "malformed") == refused(mesh, "revoked") == 0, (
                "it counted as long as it was a member's"
            )
            for count in range(1, 4):
                link.send(seal(Nack(count)))
                until(partial(has_refused, mesh, "revoked", count), 10, "what it says is refused")
            assert not closed.is_set(), "it was one connection"
    finally:
        watch.cancel()
        link.close()
        context.destroy(linger=0)


def test_a_revoked_key_counts_no_more_on_an_open_connection(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(3)
    mesh.kill(2)
    keys = KeyPair.load(mesh.node(2) / "node.key_secret")
    asyncio.run(is_refused_on_its_open_connection(mesh, keys))
    assert log_of(mesh).count("(revoked)") == 1
    asyncio.run(say(mesh, keys, b"hello", lambda: refused(mesh, "stranger") > 0))
    assert mesh.status()["quorum"]


def test_an_envelope_that_claims_an_absurd_size_is_refused_and_counted(make_mesh: MakeMesh) -> None:
    mesh = make_mesh(2)
    mesh.kill(1)
    keys = KeyPair.load(mesh.node(1) / "node.key_secret")
    claim = b"\x92\x01\xdd\xff\xff\xff\xff"
    asyncio.run(say(mesh, keys, claim, lambda: refused(mesh, "malformed") > 0))
    asyncio.run(say(mesh, keys, msgpack.packb([99, {}]), lambda: refused(mesh, "malformed") > 1))
    assert log_of(mesh).count("(malformed)") == 1
    assert mesh.status()["quorum"]
