"""A worker's patience with its servers."""

import os
from typing import NoReturn

import pytest
import zmq

from dmi.run.servers import Servers
from dmi_protocol import limits
from dmi_protocol.identity import JobId, NodeId, PublicKey
from dmi_protocol.messages.roles import Assignment, Endpoint, FromRole, Replicas, RoleKey, Roster, Unheard
from dmi_wire.bulk import Context
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair


class GaveUpError(Exception):
    """Raised where a worker's process would end."""


def give_up(kind: str, line: str) -> NoReturn:
    raise GaveUpError(f"{kind}: {line}")


class Quiet(Child):
    """A daemon that says nothing, and remembers what it is told."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0)
        self.told: list[FromRole] = []

    def newest(self) -> None:
        return None

    def tell(self, message: FromRole) -> None:
        self.told.append(message)


def roster(*endpoints: Endpoint, primary: int = 0, generation: int = 1) -> Roster:
    return Roster(generation, 1, endpoints, (), Assignment((0,), (1.0,), 0, (Replicas(primary),)))


def endpoint_of(index: int) -> Endpoint:
    key = RoleKey(JobId("job-000000"), 1, "server", index)
    return Endpoint(key, NodeId("0" * 16), "n7", "127.0.0.1:9", PublicKey(KeyPair.make().public))


def test_a_shard_moves_with_its_primary() -> None:
    context: Context = zmq.Context()
    servers = Servers(context, KeyPair.make(), 0, NodeId("0" * 16), Quiet(), give_up)
    one, two = endpoint_of(0), endpoint_of(1)
    assert servers.follow(roster(one, two)) == (0,)
    assert servers.is_local(0)
    assert servers.follow(roster(one, two, generation=2)) == ()
    assert servers.follow(roster(two, primary=1, generation=3)) == (0,)
    assert servers.name(0) == "server-1@n7"
    servers.close()
    context.term()


def test_a_server_that_is_not_heard_is_reported_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAIR_SILENT_MS", 500)
    context: Context = zmq.Context()
    child = Quiet()
    servers = Servers(context, KeyPair.make(), 0, NodeId("1" * 16), child, give_up)
    servers.follow(roster(endpoint_of(0), generation=4))
    assert servers.hear(2.5, "now") is None
    assert 2 <= len(child.told) <= 5
    for told in child.told:
        assert isinstance(told, Unheard)
        assert (told.generation, told.role, told.index) == (4, "server", 0)
    servers.close()
    context.term()


def test_a_server_that_is_silent_is_named_with_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_SILENT_MS", 1_500)
    monkeypatch.setattr(limits, "PEER_BEAT_MS", 100)
    context: Context = zmq.Context()
    endpoint = endpoint_of(0)
    servers = Servers(context, KeyPair.make(), 0, NodeId("1" * 16), Quiet(), give_up)
    assert servers.follow(roster(endpoint)) == (0,)
    with pytest.raises(GaveUpError, match=r"peer-silent: server-0@n7 was not heard for \d+ s in step 4"):
        servers.hear(30.0, "in step 4")
    servers.close()
    context.term()


def test_news_that_do_not_come_in_time_are_no_failure() -> None:
    context: Context = zmq.Context()
    endpoint = endpoint_of(0)
    servers = Servers(context, KeyPair.make(), 0, NodeId("1" * 16), Quiet(), give_up)
    servers.follow(roster(endpoint))
    assert servers.hear(0.1, "now") is None
    servers.close()
    context.term()
