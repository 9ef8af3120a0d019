"""Tokens, whole and damaged; and nodes that do not answer."""

import asyncio
import base64
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq.asyncio

from dmi_node import joining
from dmi_node.joining import Invitation, JoinError, MeshAwayError, redeem
from dmi_node.storage.journal import IDENTITY, has_fact
from dmi_protocol import reasons
from dmi_protocol.codec import seal
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.control import Join, Refused, Welcomed
from dmi_protocol.sentences import sentence
from dmi_wire.keys import KeyPair
from dmi_wire.listener import Listener
from dmi_wire.zap import Gatekeeper

pytestmark = pytest.mark.processes

KEYS = KeyPair.make()
INVITATION = Invitation("mesh", (("127.0.0.1:7600", KEYS.public), ("10.0.0.2:7600", KEYS.public)), KEYS.secret, 2**31)
JOIN = Join("joiner", "127.0.0.1:9", KEYS.public, witness=False)


def test_a_token_is_one_printable_word() -> None:
    token = INVITATION.token()
    assert token.startswith("dmi-")
    assert token.isascii()
    assert not set(token) & set(" '\"\\/+=\n")
    assert Invitation.of_token(f" {token}\n") == INVITATION


def test_every_damage_is_noticed() -> None:
    token = INVITATION.token()
    for place in range(0, len(token), 7):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(JoinError, match="not whole"):
            Invitation.of_token(token[:place] + other + token[place + 1 :])
    for end in range(0, len(token), 7):
        with pytest.raises(JoinError, match="not whole"):
            Invitation.of_token(token[:end])


@pytest.mark.parametrize("token", ["", "dmi-", "dmi-AAAA", "dmi-ä", "x" * 100, "dmi-" + "A" * 8])
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(JoinError, match="not whole"):
        Invitation.of_token(token)


def test_a_token_of_another_kind_is_not_taken() -> None:
    raw = b"\xb6\xe8+\xd4" + b"\x93\x01\x02\x03"
    with pytest.raises(JoinError, match="not whole"):
        Invitation.of_token("dmi-" + base64.urlsafe_b64encode(raw).decode())


async def test_nodes_that_are_away_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_TRY_S", 0.1)
    with socket.socket() as silent, socket.socket() as closed:
        for door in (silent, closed):
            door.bind(("127.0.0.1", 0))
        silent.listen()
        addresses = [f"127.0.0.1:{door.getsockname()[1]}" for door in (silent, closed)]
        nodes = tuple((address, KEYS.public) for address in addresses)
        token = Invitation("mesh", nodes, KEYS.secret, 2**31).token()
        with pytest.raises(MeshAwayError, match=f"{addresses[0]}, {addresses[1]}"):
            await redeem(token, JOIN)
        old = Invitation("mesh", nodes, KEYS.secret, 1_000_000_000).token()
        with pytest.raises(JoinError, match="has expired") as caught:
            await redeem(old, JOIN)
        assert not isinstance(caught.value, MeshAwayError)


async def test_a_token_with_no_secret_in_it_is_damaged() -> None:
    token = Invitation("mesh", (("127.0.0.1:1", PublicKey(KEYS.public)),), "no key", 2**31).token()
    with pytest.raises(JoinError, match="damaged"):
        await redeem(token, JOIN)


class Door:
    """One node's mesh port: who is let in, and the answer to each ``Join``."""

    def __init__(self) -> None:
        self.keys = KeyPair.make()
        self.allowed: set[PublicKey] = set()
        self.answer: Welcomed | Refused | None = None
        self._context = zmq.asyncio.Context()
        self._gatekeeper = Gatekeeper(self._context, "mesh", lambda key: key in self.allowed, lambda _, __: None)
        self._listener = Listener(self._context, self.keys, "mesh")
        self.address = f"127.0.0.1:{self._listener.bind('127.0.0.1', 0)}"
        self._tasks = [asyncio.ensure_future(self._gatekeeper.serve()), asyncio.ensure_future(self._serve())]

    async def _serve(self) -> None:
        while True:
            heard = await self._listener.receive()
            if self.answer is not None:
                self._listener.answer(heard, seal(self.answer))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        self._gatekeeper.close()
        self._context.destroy(linger=0)


def token_for(*doors: Door) -> str:
    return Invitation("mesh", tuple((door.address, door.keys.public) for door in doors), KEYS.secret, 2**31).token()


@pytest.fixture
async def doors(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Door]]:
    monkeypatch.setattr(joining, "_TRY_S", 0.3)
    made = [Door(), Door()]
    yield made
    for door in made:
        await door.close()


async def test_who_is_undecided_is_passed_over(doors: list[Door]) -> None:
    doors[0].answer = Refused(reasons.NoCoordinator())
    doors[1].answer = Welcomed("mesh", ())
    for door in doors:
        door.allowed.add(KEYS.public)
    assert await redeem(token_for(*doors), JOIN) == doors[1].answer


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (reasons.NoQuorum((), ("n1",)), MeshAwayError),
        (reasons.NoCoordinator(), MeshAwayError),
        (reasons.TimedOut(10_000), MeshAwayError),
        (reasons.InvitationUsed(), JoinError),
        (reasons.InvitationExpired(), JoinError),
        (reasons.NameTaken("joiner"), JoinError),
        (reasons.LimitReached("members", 1), JoinError),
    ],
)
async def test_a_mesh_that_cannot_decide_is_late_and_one_that_refuses_is_not(
    doors: list[Door], reason: reasons.Reason, error: type[JoinError]
) -> None:
    doors[0].answer = Refused(reason)
    doors[0].allowed.add(KEYS.public)
    with pytest.raises(JoinError) as caught:
        await redeem(token_for(doors[0]), JOIN)
    assert type(caught.value) is error
    assert sentence(reason) in str(caught.value)


async def test_an_invitation_that_everybody_turns_away_is_used_and_one_silent_node_makes_it_open(
    doors: list[Door],
) -> None:
    with pytest.raises(JoinError, match="used already") as caught:
        await redeem(token_for(*doors), JOIN)
    assert type(caught.value) is JoinError
    doors[1].allowed.add(KEYS.public)
    with pytest.raises(MeshAwayError, match=doors[1].address):
        await redeem(token_for(*doors), JOIN)


async def test_a_key_whose_invitation_is_still_on_its_way_is_let_in(
    doors: list[Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_TRY_S", 10)
    asked: list[PublicKey] = []

    def late(key: PublicKey) -> bool:
        asked.append(key)
        return len(asked) > 2

    monkeypatch.setattr(doors[0]._gatekeeper, "_allowed", late)
    doors[0].answer = Welcomed("mesh", ())
    assert await redeem(token_for(doors[0]), JOIN) == doors[0].answer
    assert len(asked) == 3


def start(home: Path, token: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "dmi_node", "run", "--home", str(home), "--listen", "127.0.0.1:0", "--join", token]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_a_first_start_while_the_mesh_is_away_may_be_tried_again(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nodes = ((f"127.0.0.1:{closed.getsockname()[1]}", KEYS.public),)
        tokens = [Invitation("mesh", nodes, KEYS.secret, expires).token() for expires in (2**31, 1_000_000_000)]
        homes = [tmp_path / "late", tmp_path / "over"]
        runs = [start(home, token) for home, token in zip(homes, tokens, strict=True)]
        try:
            said = [run.communicate(timeout=60)[1] for run in runs]
        finally:
            for run in runs:
                run.kill()
    assert [run.returncode for run in runs] == [75, 78], said
    assert "no answer while joining" in said[0]
    assert "has expired" in said[1]
    assert [len(text.splitlines()) for text in said] == [1, 1]
    assert not has_fact(homes[0] / "state.sqlite", IDENTITY)
