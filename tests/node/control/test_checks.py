"""What a client may not ask for, and how it is told."""

from typing import Any

import pytest

from dmi_node.control import checks
from dmi_node.control.server import RefusalError
from dmi_protocol import limits
from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import TrainingSpec
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import NodeId, PublicKey
from tests.protocol.models import adding

STATE = ClusterState("mesh")
for name in "ab":
    who = NodeId(name * 16)
    STATE.members[who] = MemberRecord(who, name, "h:1", PublicKey(name), witness=False, capacity=Capacity(2, 8 * 10**9))
SPEC: dict[str, Any] = {"name": "digits", "script": "digits.py", "args": ["--epochs", "3"], "workers": 2, "leaves": 8}


def test_a_job_that_can_be() -> None:
    found = checks.spec(SPEC, STATE)
    assert isinstance(found, TrainingSpec)
    assert (found.name, found.args, found.workers, found.servers) == ("digits", ("--epochs", "3"), 2, None)


@pytest.mark.parametrize(
    ("change", "kind", "hint"),
    [
        ({"name": ""}, "usage", "--name"),
        ({"name": "a" * 64}, "usage", "--name"),
        ({"name": "a\nb"}, "usage", "--name"),
        ({"script": ""}, "usage", "script"),
        ({"script": "s" * 5000}, "usage", "script"),
        ({"args": ["a"] * (limits.ARGUMENTS + 1)}, "usage", "arguments"),
        ({"args": ["a" * 70_000]}, "usage", "--include"),
        ({"backups": 9}, "refused", "9 backups were asked for"),
        ({"backups": -1}, "usage", "--backups"),
        ({"leaves": 3}, "usage", "power of two"),
        ({"leaves": 0}, "usage", "power of two"),
        ({"leaves": 2 * limits.LEAVES}, "usage", "power of two"),
        ({"threads": 0}, "usage", "--threads"),
        ({"workers": 3}, "refused", "3"),
        ({"workers": 0}, "refused", "0"),
        ({"servers": 3}, "refused", "3"),
        ({"env": [["A B", "c"]]}, "usage", "--env 'A B' is no variable"),
        ({"env": [["A", "b\0"]]}, "usage", "--env"),
        ({"env": [["DMI_HOME", "/"]]}, "usage", "DMI's own"),
        ({"env": [["A", "b" * 70_000]]}, "usage", "--env takes"),
        ({"python": ""}, "usage", "--python"),
        ({"cpus": 0}, "usage", "--cpus"),
        ({"memory": 0}, "usage", "--memory"),
        ({"cpus": 1, "threads": 2}, "usage", "--threads 2 is more than --cpus 1"),
        (
            {"cpus": 3},
            "refused",
            "^no node has 3 processors for jobs, the largest has 2 processors;",
        ),
        ({"memory": 9 * 10**9, "workers": None}, "refused", "^no node has 9.0 GB for jobs, the largest has 8.0 GB;"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_job_that_cannot_be(change: dict[str, Any], kind: str, hint: str) -> None:
    with pytest.raises(RefusalError, match=hint) as refused:
        checks.spec(SPEC | change, STATE)
    assert refused.value.kind == kind
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [None, {}, {"name": 1}, SPEC | {"workers": "two"}, SPEC | {"workers": 2**80}])
def test_what_is_no_job(value: object) -> None:
    with pytest.raises((RemoteProtocolError, RefusalError)):
        checks.spec(value, STATE)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ({"every": 2}, "--every goes with --follow"),
        ({"every": 2, "follow": "job"}, "must be made by a function"),
        ({"cpus": 3}, "no node has 3 processors"),
        ({"cpus": 1, "replicas": 5}, "1 processor is asked for 5 times, and the mesh has that 4 times"),
        ({"cpus": 1, "threads": 2}, "--threads 2 is more than --cpus 1"),
        ({"memory": 0}, "--memory"),
    ],
    ids=str,
)
def test_what_cannot_be_served(said: dict[str, Any], hint: str) -> None:
    state = ClusterState("mesh", members=dict(STATE.members))
    apply(state, 1, adding("m", *state.members))
    assert checks.deployment({"model": "m", "cpus": 2, "replicas": 2}, state).cpus == 2
    with pytest.raises(RefusalError, match=hint):
        checks.deployment({"model": "m"} | said, state)


def test_requests_bundles_and_invitations() -> None:
    assert checks.request("a" * 32) == "a" * 32
    assert checks.bundle("0" * 64, 10) == ("0" * 64, 10)
    assert checks.seconds(3600) == 3600


@pytest.mark.parametrize("value", ["", "a" * 129, 7, None, b"a"])
def test_no_request(value: object) -> None:
    with pytest.raises(RefusalError):
        checks.request(value)


@pytest.mark.parametrize(
    ("name", "size"),
    [("0" * 63, 1), ("../" + "0" * 61, 1), (7, 1), ("0" * 64, 0), ("0" * 64, "1"), ("0" * 64, limits.BUNDLE_BYTES + 1)],
)
def test_no_bundle(name: object, size: object) -> None:
    with pytest.raises(RefusalError):
        checks.bundle(name, size)


@pytest.mark.parametrize("value", [0, -1, 2**63, 1.5, float("inf"), "60", None])
def test_no_time_to_live(value: object) -> None:
    with pytest.raises(RefusalError, match="seconds"):
        checks.seconds(value)
