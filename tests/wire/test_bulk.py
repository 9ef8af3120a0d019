"""Data sockets against real ones: who is in the roster is heard, under its own name, and nobody else."""

import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.parameters import Beat, Checkpoint
from dmi_wire import bulk
from dmi_wire.bulk import Context, DataConnection, DataListener, Delivery
from dmi_wire.keys import KeyPair

PORTS = (30_000, 30_999)
PATIENCE_S = 10.0


class Pair:
    """A listener, and lines to it."""

    def __init__(self) -> None:
        self.context: Context = zmq.Context()
        self.keys = KeyPair.make()
        self.listener = DataListener(self.context, self.keys, "127.0.0.1", PORTS)
        self.poller = zmq.Poller()
        self.listener.register(self.poller)
        self.lines: list[DataConnection] = []

    def line(self, keys: KeyPair, name: bytes) -> DataConnection:
        self.lines.append(DataConnection(self.context, keys, name, self.listener.address, PublicKey(self.keys.public)))
        return self.lines[-1]

    def close(self) -> None:
        for line in self.lines:
            line.close()
        self.listener.close()
        self.context.term()

    def wait(self, enough: Callable[[], object]) -> None:
        """Let the listener live until ``enough`` says so."""
        deadline = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < deadline, "nothing came"
            self.poller.poll(100)
            self.listener.authenticate()

    def receive(self) -> Delivery:
        found: list[Delivery] = []

        def look() -> bool:
            delivery = self.listener.receive()
            if delivery is not None:
                found.append(delivery)
            return bool(found)

        self.wait(look)
        return found[0]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_frames_come_writable_and_the_answer_finds_its_way(pair: Pair) -> None:
    keys = KeyPair.make()
    pair.listener.admit({PublicKey(keys.public): b"worker-0"})
    line = pair.line(keys, b"worker-0")
    payload = bytearray(b"x" * 1_000_000)
    tracker = line.send(Checkpoint(1, 0, 2), [memoryview(payload)])
    delivery = pair.receive()
    assert (delivery.sender, delivery.message) == (b"worker-0", Checkpoint(1, 0, 2))
    assert delivery.frames[0] == payload
    delivery.frames[0][:1] = b"y"
    tracker.wait(PATIENCE_S)
    assert pair.listener.send(delivery.sender, Beat(1), [b"back"]) is not None
    answer = line.receive(10_000)
    assert answer is not None
    assert (answer[0], bytes(answer[1][0])) == (Beat(1), b"back")


def test_a_stranger_is_refused_and_counted(pair: Pair) -> None:
    known, stranger = KeyPair.make(), KeyPair.make()
    pair.listener.admit({PublicKey(known.public): b"worker-0"})
    pair.line(stranger, b"worker-0").send(Beat(1))
    pair.wait(lambda: pair.listener.refused)
    assert pair.listener.receive() is None
    pair.line(known, b"worker-0").send(Beat(2))
    assert pair.receive().message == Beat(2)


def test_who_is_in_the_next_roster_waits_at_the_door(pair: Pair) -> None:
    known, early = KeyPair.make(), KeyPair.make()
    pair.listener.admit({PublicKey(known.public): b"worker-0"})
    pair.line(early, b"worker-1").send(Beat(2))
    pair.wait(lambda: pair.listener._undecided)
    assert pair.listener.receive() is None
    pair.listener.admit({PublicKey(known.public): b"worker-0", PublicKey(early.public): b"worker-1"})
    delivery = pair.receive()
    assert (delivery.sender, delivery.message) == (b"worker-1", Beat(2))
    assert pair.listener.refused == 0


def test_who_was_refused_because_the_roster_was_late_gets_in_after_all(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal for good would leave a worker without its line, and its server waiting for it."""
    monkeypatch.setattr(bulk, "_UNDECIDED_S", 0.0)
    monkeypatch.setattr(bulk, "_HANDSHAKE_MS", 500)
    late = KeyPair.make()
    pair.listener.admit({})
    pair.line(late, b"worker-1").send(Beat(2))
    pair.wait(lambda: pair.listener.refused)
    pair.listener.admit({PublicKey(late.public): b"worker-1"})
    assert pair.receive().message == Beat(2)


def test_who_waits_at_the_door_keeps_nobody_else_waiting(pair: Pair) -> None:
    known, early = KeyPair.make(), KeyPair.make()
    pair.listener.admit({PublicKey(known.public): b"worker-0"})
    pair.line(early, b"worker-1").send(Beat(2))
    pair.wait(lambda: pair.listener._undecided)
    pair.line(known, b"worker-0").send(Beat(1))
    assert pair.receive().sender == b"worker-0"
    assert pair.listener.refused == 0


def test_the_door_is_not_for_crowds(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_UNDECIDED", 3)
    monkeypatch.setattr(bulk, "_UNDECIDED_S", 2 * PATIENCE_S)
    pair.listener.admit({})
    for number in range(5):
        pair.line(KeyPair.make(), b"worker-%d" % number).send(Beat(1))
    pair.wait(lambda: pair.listener.refused)
    assert len(pair.listener._undecided) <= 3


def test_a_key_that_is_no_longer_admitted_is_refused_on_its_open_connection(pair: Pair) -> None:
    keys = KeyPair.make()
    pair.listener.admit({PublicKey(keys.public): b"worker-0"})
    line = pair.line(keys, b"worker-0")
    line.send(Beat(1))
    pair.receive()
    pair.listener.admit({})
    line.send(Beat(2))
    with pytest.raises(RemoteProtocolError):
        pair.receive()
    assert pair.listener.refused == 1


def test_nobody_speaks_under_anothers_name(pair: Pair) -> None:
    keys = KeyPair.make()
    pair.listener.admit({PublicKey(keys.public): b"worker-1"})
    pair.line(keys, b"worker-0").send(Beat(1))
    with pytest.raises(RemoteProtocolError):
        pair.receive()


def test_what_is_no_message_is_the_peers_fault(pair: Pair) -> None:
    keys = KeyPair.make()
    pair.listener.admit({PublicKey(keys.public): b"worker-0"})
    line = pair.line(keys, b"worker-0")
    line.socket.send(b"\xc1 garbage")
    with pytest.raises(RemoteProtocolError):
        pair.receive()
    line.send(Beat(1))
    assert pair.receive().message == Beat(1)


def test_who_is_not_connected_is_told_apart(pair: Pair) -> None:
    assert pair.listener.send(b"worker-9", Beat(1)) is None


def test_a_full_range_of_ports_is_an_os_error(pair: Pair) -> None:
    port = int(pair.listener.address.rpartition(":")[2])
    other: Context = zmq.Context()
    with pytest.raises(OSError, match="no free port"):
        DataListener(other, KeyPair.make(), "127.0.0.1", (port, port))
    other.term()
