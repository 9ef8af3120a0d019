"""What counts as an address is what a socket takes, and what does not count never reaches one."""

import pytest
import zmq

from dmi_protocol.address import is_address

GOOD = [
    "10.0.0.1:7600",
    "host-1.example.org:7600",
    "localhost:1",
    "a_b:65535",
    "[::1]:7600",
    "[fe80::1%eth0]:7600",
    "h:0",
]
BAD = [
    "",
    ":1",
    "h",
    "h:",
    "h:-1",
    "h:1 ",
    "h:1\n",
    "*:7600",
    "h:*",
    "h:65536",
    "h:99999999",
    "a b:3",
    "a/b:1",
    "h:1/x",
]


@pytest.mark.parametrize("address", GOOD)
def test_a_socket_takes_what_counts(address: str) -> None:
    assert is_address(address)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://{address}")


@pytest.mark.parametrize("address", [*BAD, "-x:7600", "%:1", "é:1", "h:١", "x" * 300 + ":1", "h;1.2.3.4:5"])
def test_what_does_not_count_is_no_address(address: str) -> None:
    assert not is_address(address)
