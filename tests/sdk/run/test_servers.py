"""A worker's patience with its servers."""

from typing import NoReturn

import pytest
import zmq

from dmi.run.servers import Servers
from dmi_protocol import limits
from dmi_protocol.identity import JobId, NodeId, PublicKey
from dmi_protocol.messages.roles import RoleKey, Roster, Seat
from dmi_wire.bulk import Context
from dmi_wire.keys import KeyPair


class GaveUpError(Exception):
    """Raised where a worker's process would end."""


def give_up(kind: str, line: str) -> NoReturn:
    raise GaveUpError(f"{kind}: {line}")


def test_a_server_that_is_silent_is_named_with_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PEER_SILENT_MS", 1_500)
    context: Context = zmq.Context()
    key = RoleKey(JobId("job-000000"), 1, "server", 0)
    seat = Seat(key, NodeId("0" * 16), "n7", "127.0.0.1:9", PublicKey(KeyPair.make().public))
    roster = Roster(1, (seat,), (), (0,), (1.0,), 0)
    servers = Servers(context, KeyPair.make(), 0, NodeId("1" * 16), roster, give_up)
    with pytest.raises(GaveUpError, match=r"peer-silent: server-0@n7 was not heard for [12] s in step 4"):
        servers.hear(30.0, "in step 4")
    servers.close()
    context.term()


def test_news_that_do_not_come_in_time_are_no_failure() -> None:
    context: Context = zmq.Context()
    key = RoleKey(JobId("job-000000"), 1, "server", 0)
    seat = Seat(key, NodeId("0" * 16), "n7", "127.0.0.1:9", PublicKey(KeyPair.make().public))
    servers = Servers(context, KeyPair.make(), 0, NodeId("1" * 16), Roster(1, (seat,), (), (0,), (1.0,), 0), give_up)
    assert servers.hear(0.1, "now") is None
    servers.close()
    context.term()
