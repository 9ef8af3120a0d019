"""What ``submit`` says to a node, and what the other calls ask."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dmi
from dmi.errors import NoNodeError, RefusedError, UsageError
from dmi.mesh import Mesh
from dmi_protocol.cluster.command import TrainingSpec
from dmi_protocol.codec import convert
from tests.sdk.fake_node import Client, FakeNode, value

BIG = 3 << 20


class Uploads:
    """A ``submit`` verb. It keeps what it was sent."""

    def __init__(self, *, need: bool) -> None:
        self.need = need
        self.bundle = b""
        self.args: dict[str, Any] = {}

    def __call__(self, client: Client, args: dict[str, Any]) -> object:
        self.args = args
        client.send({"need": [args["bundle"]] if self.need else []})
        while self.need and "chunk" in (piece := client.receive()):
            self.bundle += piece["chunk"]
        return {"id": "train-77"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("print(1)")
    (tmp_path / "big.bin").write_bytes(b"x" * BIG)
    return path


def test_submit_uploads_what_the_node_does_not_have(tmp_path: Path, script: Path) -> None:
    uploads = Uploads(need=True)
    with FakeNode(tmp_path / "n0", submit=uploads):
        job = dmi.connect(tmp_path / "n0").submit(script, ["--epochs", 3], workers=2, include=["big.bin"])
    assert job.id == "train-77"
    assert len(uploads.bundle) == uploads.args["size"] > BIG
    assert hashlib.sha256(uploads.bundle).hexdigest() == uploads.args["bundle"]
    spec = convert(uploads.args["spec"], TrainingSpec)
    assert (spec.name, spec.script, spec.workers, spec.leaves) == ("train", "train.py", 2, None)
    assert list(spec.args) == ["--epochs", "3"]


def test_submit_sends_nothing_that_the_node_has(tmp_path: Path, script: Path) -> None:
    uploads = Uploads(need=False)
    with FakeNode(tmp_path / "n0", submit=uploads):
        assert dmi.connect(tmp_path / "n0").submit(script, name="other").id == "train-77"
    assert uploads.bundle == b""
    assert uploads.args["spec"]["name"] == "other"


def test_each_submit_is_a_request_of_its_own(tmp_path: Path, script: Path) -> None:
    uploads = Uploads(need=False)
    with FakeNode(tmp_path / "n0", submit=uploads):
        mesh = dmi.connect(tmp_path / "n0")
        requests = []
        for _ in range(2):
            mesh.submit(script)
            requests.append(uploads.args["request"])
    assert len(set(requests)) == 2


def test_a_node_that_refuses_in_the_middle_of_an_upload_is_heard(tmp_path: Path, script: Path) -> None:
    """It hangs up while the client still sends: the reason matters, not the broken pipe."""

    def full(client: Client, args: dict[str, Any]) -> None:
        client.send({"need": [args["bundle"]]})
        client.receive()
        client.send({"error": {"kind": "refused", "line": "the disk is full"}})

    with FakeNode(tmp_path / "n0", submit=full), pytest.raises(RefusedError, match="the disk is full"):
        dmi.connect(tmp_path / "n0").submit(script, include=["big.bin"])


def test_a_bad_script_never_reaches_the_node(tmp_path: Path) -> None:
    with FakeNode(tmp_path) as node:
        mesh = dmi.connect(tmp_path)
        with pytest.raises(UsageError):
            mesh.submit(tmp_path / "gone.py")
        assert [verb for verb, _ in node.asked] == ["version"]


def test_connect_needs_a_node(tmp_path: Path) -> None:
    with pytest.raises(NoNodeError):
        dmi.connect(tmp_path)


@pytest.mark.parametrize(
    ("call", "verb", "args"),
    [
        (Mesh.status, "status", {}),
        (Mesh.members, "members", {}),
        (Mesh.roles, "roles", {}),
        (Mesh.jobs, "jobs", {}),
        (lambda mesh: mesh.invite(60), "invite", {"ttl_s": 60}),
        (Mesh.leave, "leave", {}),
        (lambda mesh: mesh.expel("n3"), "expel", {"node": "n3"}),
        (Mesh.stop, "stop", {}),
        (lambda mesh: mesh.job("digi"), "why", {"job": "digi"}),
    ],
)
def test_every_call_asks_one_verb(
    tmp_path: Path, call: Callable[[Mesh], object], verb: str, args: dict[str, Any]
) -> None:
    with FakeNode(tmp_path, **{verb: value({"job": "digits-1a2b"})}) as node:
        call(dmi.connect(tmp_path))
        assert node.asked[1:] == [(verb, args)]


def test_a_job_is_known_by_what_the_node_calls_it(tmp_path: Path) -> None:
    with FakeNode(tmp_path, why=value({"job": "digits-1a2b"})):
        assert dmi.connect(tmp_path).job("digi").id == "digits-1a2b"
