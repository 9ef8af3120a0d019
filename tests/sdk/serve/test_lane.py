"""A version in a replica: its computing process is waited for by nobody, and not for ever."""

import time
from pathlib import Path

import pytest

from dmi.serve.computing import EndedError
from dmi.serve.lane import Batch, Ended, Lane
from dmi_protocol import limits
from dmi_protocol.identity import JobId, NodeId
from dmi_protocol.messages.roles import ReplicaLaunch, RoleKey
from dmi_protocol.messages.serving import Compute
from dmi_protocol.model import ModelRef
from tests.protocol.models import content

pytestmark = pytest.mark.processes


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplicaLaunch:
    monkeypatch.chdir(tmp_path)
    return ReplicaLaunch(
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


def test_what_is_not_in_memory_in_time_is_ended(launch: ReplicaLaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane(launch)
    assert list(lane.look()) == []
    monkeypatch.setattr(limits, "ROLE_START_MS", 0)
    with pytest.raises(EndedError, match="not in memory within 0 seconds"):
        list(lane.look())
    assert not lane.has_loaded


def test_whoever_gave_a_batch_that_nobody_waits_for_hears_that_it_was_not_begun(
    launch: ReplicaLaunch,
) -> None:
    """Or a gateway would count it among what this replica has in hand, for ever."""
    lane = Lane(launch)
    lane._process.is_ready = True
    message = Compute(5, "net:2", ("x",), (), (1,), 10)
    late = Batch(b"gateway-0", message, (), gives_up_at=time.monotonic() - 1)
    lane.add(late)
    assert list(lane.go_on()) == [Ended(late)]
    assert lane.batches == 0
    lane.close()
