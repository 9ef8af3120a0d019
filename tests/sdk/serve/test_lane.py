"""A version in a replica: its computing process is waited for by nobody, and not for ever."""

from pathlib import Path

import pytest

from dmi.serve.computing import EndedError
from dmi.serve.lane import Lane
from dmi_protocol import limits
from dmi_protocol.identity import JobId, NodeId
from dmi_protocol.messages.roles import ReplicaLaunch, RoleKey
from dmi_protocol.model import ModelRef
from tests.protocol.models import content

pytestmark = pytest.mark.processes


def test_what_is_not_in_memory_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launch = ReplicaLaunch(
        key=RoleKey(JobId("net-1"), 1, "replica", 0),
        node=NodeId("n"),
        node_name="n0",
        bundle="",
        directory="",
        threads=1,
        host="127.0.0.1",
        ports=(0, 0),
        model=ModelRef("net:2", content()),
        max_batch=8,
    )
    lane = Lane(launch)
    assert list(lane.look()) == []
    monkeypatch.setattr(limits, "ROLE_START_MS", 0)
    with pytest.raises(EndedError, match="not in memory within 0 seconds"):
        list(lane.look())
    assert not lane.has_loaded
