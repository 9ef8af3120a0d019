"""Tokens, whole and damaged; and nodes that do not answer."""

import base64
import socket

import pytest

from dmi_node import joining
from dmi_node.joining import Invitation, JoinError, redeem
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.control import Join
from dmi_wire.keys import KeyPair

KEYS = KeyPair.make()
INVITATION = Invitation("mesh", (("127.0.0.1:7600", KEYS.public), ("10.0.0.2:7600", KEYS.public)), KEYS.secret, 2**31)
JOIN = Join("guest", "127.0.0.1:9", KEYS.public, witness=False)


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
        with pytest.raises(JoinError, match=f"{addresses[0]}, {addresses[1]}"):
            await redeem(token, JOIN)


async def test_a_token_with_no_secret_in_it_is_damaged() -> None:
    token = Invitation("mesh", (("127.0.0.1:1", PublicKey(KEYS.public)),), "no key", 2**31).token()
    with pytest.raises(JoinError, match="damaged"):
        await redeem(token, JOIN)
