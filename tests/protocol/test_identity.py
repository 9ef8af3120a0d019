"""Names are functions of what they name, and a key that counts is one that a socket takes."""

from random import Random

import pytest
import zmq

from dmi_protocol.identity import PublicKey, RequestId, is_public_key, job_id, node_id
from dmi_wire.keys import KeyPair


def taken(key: str) -> bool:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        try:
            socket.curve_serverkey = key.encode("ascii")
        except (zmq.ZMQError, ValueError):
            return False
        return True


def test_real_keys_count() -> None:
    assert all(is_public_key(KeyPair.make().public) for _ in range(50))


@pytest.mark.parametrize(
    "key", ["", "c" * 39, "c" * 41, "é" * 40, '"' * 40, "#" * 40, "%nSc1" + "0" * 35, "%nSc0" + "0" * 35]
)
def test_what_counts_is_what_a_socket_takes(key: str) -> None:
    assert is_public_key(key) == taken(key)


def test_random_characters_count_when_a_socket_takes_them() -> None:
    random = Random(4)
    counted = set()
    for _ in range(300):
        key = "".join(random.choices("0Aa%@#$~ ", [20, 20, 20, 1, 1, 1, 1, 0.05, 0.05], k=40))
        assert is_public_key(key) == taken(key), key
        counted.add(is_public_key(key))
    assert counted == {True, False}


def test_names_are_functions_of_what_they_name() -> None:
    assert node_id(PublicKey("c" * 40)) == node_id(PublicKey("c" * 40)) != node_id(PublicKey("d" * 40))
    assert len(node_id(PublicKey("c" * 40))) == 16
    assert job_id("digits", RequestId("one")) != job_id("digits", RequestId("two"))
    assert job_id("digits", RequestId("one")).startswith("digits-")
