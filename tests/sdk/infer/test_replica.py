"""An input that ends the process which computes it becomes an error row; the replica lives."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dmi.infer import config
from dmi.infer.plan import CONFIG, LISTING
from dmi.infer.readers import listing_of
from dmi.infer.replica import Computer, FailedError, Replica, lacking_memory
from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.messages.roles import BatchLaunch, RoleKey, Slices, SliceWritten
from dmi_protocol.model import ModelContent, ModelFile, ModelRef, ModelStage
from dmi_tensor.cutting import cut
from dmi_tensor.models import describe

pytestmark = pytest.mark.processes

CODE = """
import os, signal
import torch
def prepare(value):
    if value[0] in POISON:
        os.kill(os.getpid(), signal.SIGNAL)
    return torch.tensor(value)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
    def forward(self, x):
        if ALWAYS or (x[:, 0] == 7).any():
            os._exit(3)
        return self.linear(x)
"""


@pytest.fixture(scope="module", autouse=True)
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """As a node has one."""
    path = tmp_path_factory.mktemp("fork") / "fork.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind(str(path))
        listener.listen()
        patch.setenv("DMI_FORK_SERVER", str(path))
        process = subprocess.Popen(
            [sys.executable, "-m", "dmi.infer.fork_server"],
            env={
                **os.environ,
                "DMI_FORK_SERVER_FD": str(listener.fileno()),
                "DMI_FORK_SERVER_PARENT": str(os.getpid()),
            },
            pass_fds=[listener.fileno()],
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


class Ended(BaseException):
    """All slices are computed."""


class Daemon:
    """The channel of a replica: it is told some slices once."""

    def __init__(self, *slices: int) -> None:
        self.told = [Slices(1, slices)]
        self.said: list[SliceWritten] = []

    def slices(self, *, wait: bool) -> Slices | None:
        if self.told:
            return self.told.pop()
        if wait:
            raise Ended
        return None

    def tell(self, message: SliceWritten) -> None:
        self.said.append(message)


@contextmanager
def replica(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    daemon: Daemon,
    *,
    always: bool = False,
    poison: str = "(5,)",
    by: str = "SIGKILL",
    batch_size: int = 5,
    in_stages: bool = False,
) -> Iterator[Replica]:
    """With ten inputs, which begin with 0 to 9, in slices of five, by default of one batch."""
    monkeypatch.chdir(tmp_path)
    code = CODE.replace("POISON", poison).replace("SIGNAL", by) + "def make():\n    return Net()\n"
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "net.py").write_text(code.replace("ALWAYS", "False"))
    np.save(tmp_path / "x.npy", np.array([[n, 1, 2, 3] for n in range(10)], dtype=np.float32))
    found = config.of(
        {
            "model": "m",
            "input": {"kind": "npy", "path": str(tmp_path / "x.npy")},
            "preprocess": "own.py:prepare",
            "batch_size": batch_size,
        }
    )
    (tmp_path / CONFIG).write_bytes(msgspec.json.encode(found))
    (tmp_path / LISTING).write_bytes(msgspec.msgpack.encode(listing_of(found)))
    content = ModelContent("factory", (ModelFile("code", BlobHash("0" * 64), 1),), factory="net:make")
    content = describe(content, {"code": tmp_path / "net.py"})
    files, needs = [tmp_path / "net.py"], [BlobHash("0" * 64)]
    if in_stages:
        content, files, needs = staged(tmp_path)
    launch = BatchLaunch(
        key=RoleKey(JobId("job-000000"), 1, "replica", 0),
        node=NodeId("0" * 16),
        node_name="n0",
        bundle="",
        directory=str(tmp_path),
        threads=1,
        host="127.0.0.1",
        ports=(0, 0),
        files=tuple(map(str, files)),
        needs=tuple(needs),
        model=ModelRef("m:1", content),
        inputs=10,
        slice_inputs=5,
    )
    if always:
        (tmp_path / "net.py").write_text(code.replace("ALWAYS", "len(x) > 2"))
    computer = Computer(launch)
    try:
        yield Replica(daemon, launch, computer, batch_size)  # type: ignore[arg-type]
    finally:
        computer.close()


def staged(folder: Path) -> tuple[ModelContent, list[Path], list[BlobHash]]:
    """Two layers, cut into two stages."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)).eval()
    free = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=free), folder / "m.pt2")
    files = {"model": folder / "m.pt2"}
    content = describe(ModelContent("exported", (ModelFile("model", BlobHash("0" * 64), 1),)), files)
    made = cut(content, files, 90, folder)
    names = [BlobHash(letter * 64) for letter in "ab"]
    graph = ModelFile("graph", BlobHash("c" * 64), 1)
    stages = tuple(
        ModelStage((graph, ModelFile("weights", name, 1)), each.first, each.last, each.weight_bytes)
        for name, each in zip(names, made.stages, strict=True)
    )
    paths = [made.graph, *(each.weights for each in made.stages)]
    return msgspec.structs.replace(content, stages=stages), paths, [graph.blob, *names]


def rows(daemon: Daemon) -> list[dict[str, Any]]:
    found = sorted(daemon.said, key=lambda written: written.slice)
    return [json.loads(line) for written in found for line in Path(written.path).read_bytes().splitlines()]


def test_an_input_that_ends_the_process_is_found_and_the_others_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(0)
    with replica(tmp_path, monkeypatch, daemon, poison="(3,)") as found_out, pytest.raises(Ended):
        found_out.run()
    found = rows(daemon)
    assert [row["id"] for row in found] == list(range(5))
    assert [row.get("error") for row in found if "error" in row] == [
        "it ended the process that computed it, by SIGKILL (out of memory?)"
    ]
    assert "error" in found[3]


def test_of_batches_that_are_computed_together_the_one_that_ends_the_process_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(0)
    with (
        replica(tmp_path, monkeypatch, daemon, poison="(3,)", batch_size=1, in_stages=True) as found_out,
        pytest.raises(Ended),
    ):
        found_out.run()
    found = rows(daemon)
    assert [row["id"] for row in found] == list(range(5))
    assert [place for place, row in enumerate(found) if "error" in row] == [3]
    with pytest.raises(Ended), replica(tmp_path, monkeypatch, other := Daemon(0), poison="()", in_stages=True) as good:
        good.run()
    assert not [row for row in rows(other) if "error" in row]


@pytest.mark.deep
def test_inputs_that_end_the_process_are_found_and_the_others_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(1, 0)
    with replica(tmp_path, monkeypatch, daemon) as found_out, pytest.raises(Ended):
        found_out.run()
    found = rows(daemon)
    assert [row["id"] for row in found] == list(range(10))
    assert {row["id"] for row in found if "error" in row} == {5, 7}
    assert found[5]["error"] == "it ended the process that computed it, by SIGKILL (out of memory?)"
    assert found[7]["error"] == "it ended the process that computed it, with code 3"
    assert [(written.slice, written.failed) for written in daemon.said] == [(1, 2), (0, 0)]


@pytest.mark.deep
def test_a_model_that_ends_its_process_whatever_it_is_given_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica(tmp_path, monkeypatch, Daemon(0), always=True) as found_out:  # noqa: SIM117 (what is raised is looked at inside)
        with pytest.raises(FailedError, match="the model ends its process whatever it is given"):
            found_out.run()


@pytest.mark.deep
def test_an_input_that_stops_the_process_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROLE_STALLED_MS", 1_500)
    daemon = Daemon(0)
    with replica(tmp_path, monkeypatch, daemon, poison="(3,)", by="SIGSTOP") as found_out, pytest.raises(Ended):
        found_out.run()
    assert [row.get("error") for row in rows(daemon)] == [
        None, None, None, "it stopped the process that computed it", None,
    ]  # fmt: skip


def test_a_process_that_dies_between_slices_is_to_blame_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(0)
    with replica(tmp_path, monkeypatch, daemon, poison="()") as found_out:
        computer = found_out._computer
        computer.start()
        process = computer._process
        assert process is not None
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(Ended):
            found_out.run()
    assert [row for row in rows(daemon) if "error" in row] == []


@pytest.mark.deep
def test_without_a_fork_server_a_process_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMI_FORK_SERVER", str(tmp_path / "nobody.sock"))
    daemon = Daemon(0)
    with replica(tmp_path, monkeypatch, daemon, poison="(3,)") as found_out, pytest.raises(Ended):
        found_out.run()
    assert [row["id"] for row in rows(daemon) if "error" in row] == [3]


def test_whoever_is_not_wanted_any_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replica(tmp_path, monkeypatch, Daemon(0), poison="()") as found_out:
        found_out._computer.start()
        process = found_out._computer._process
        assert process is not None
        assert process.pid is not None
        assert process.poll() is None
        assert process._connection is not None
        end = os.pidfd_open(process.pid)
        process._connection.shutdown(socket.SHUT_RDWR)  # as when the replica has been killed
        poll = select.poll()
        poll.register(end, select.POLLIN)
        assert poll.poll(20_000), "it lives on"
        os.close(end)


def test_one_replica_more_must_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replica(tmp_path, monkeypatch, Daemon(0), poison="()") as found_out:
        launch = found_out._launch
    assert lacking_memory(launch.model.content.size_bytes, "MemTotal: 9 kB\nMemAvailable:   500000 kB\n") == ""
    assert lacking_memory(launch.model.content.size_bytes, "nothing that is known") == ""
    lacking = lacking_memory(launch.model.content.size_bytes, "MemTotal: 9 kB\nMemAvailable:   200000 kB\n")
    assert lacking == "it needs about 300 MiB, and this host has 195 MiB left"
