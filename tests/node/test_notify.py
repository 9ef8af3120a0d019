"""What systemd hears, on a socket that it would give."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dmi_node.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@dmi-test-{secrets.token_hex(8)}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as heard:
        heard.settimeout(10)
        heard.bind(name if name[0] != "@" else f"\0{name[1:]}")
        yield name, heard


def test_each_word_is_one_datagram(door: tuple[str, socket.socket]) -> None:
    name, heard = door
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.status("n0 serves on 127.0.0.1:7600")
    notifier.alive()
    notifier.stopping()
    words = [heard.recv(1000) for _ in range(4)]
    assert words == [b"READY=1", b"STATUS=n0 serves on 127.0.0.1:7600", b"WATCHDOG=1", b"STOPPING=1"]


def test_nobody_is_told_when_nobody_asked(tmp_path: Path) -> None:
    Notifier({}).ready()
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.ready()
    gone.stopping()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000"}, 15.0),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "@x"}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 0.0),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(environment: dict[str, str], seconds: float) -> None:
    assert Notifier(environment).watchdog_s == seconds
