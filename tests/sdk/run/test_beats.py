"""Beats: a server that answers is not silent, whatever the script does meanwhile."""

import time

import pytest
import zmq

from dmi.run.beats import Beats
from dmi_protocol import limits
from dmi_protocol.identity import JobId, NodeId, PublicKey
from dmi_protocol.messages.parameters import Beat
from dmi_protocol.messages.roles import Endpoint, RoleKey
from dmi_wire.bulk import Context, DataListener
from dmi_wire.keys import KeyPair


def test_a_server_that_answers_is_never_silent_and_one_that_stops_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_BEAT_MS", 50)
    context: Context = zmq.Context()
    mine, theirs = KeyPair.make(), KeyPair.make()
    listener = DataListener(context, theirs, "127.0.0.1", (30_000, 30_999))
    listener.admit({PublicKey(mine.public): b"worker-3"})
    key = RoleKey(JobId("job-000000"), 1, "server", 0)
    endpoint = Endpoint(key, NodeId("0" * 16), "n0", listener.address, PublicKey(theirs.public))
    beats = Beats(context, mine, 3)
    beats.watch(1, {0: endpoint})
    poller = zmq.Poller()
    listener.register(poller)
    answered, end = 0, time.monotonic() + 1.5
    while time.monotonic() < end:
        poller.poll(50)
        listener.authenticate()
        while (delivery := listener.receive()) is not None:
            assert (delivery.sender, delivery.message) == (b"worker-3/beat", Beat(1))
            listener.send(delivery.sender, Beat(1))
            answered += 1
    assert answered > 3
    assert beats.silent_ms()[0] < 500
    deadline = time.monotonic() + 10
    while beats.silent_ms()[0] < 600:
        assert time.monotonic() < deadline, "nobody notices the silence"
        poller.poll(20)
    beats.close()
    assert beats.silent_ms() == beats.silent_ms(), (
        "nobody looks any more: a script that keeps us from it silences no server"
    )
    listener.close()
    context.term()
