"""A deployment that follows a training: each version that it publishes is served soon, and no request fails."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from safetensors.torch import save_file

import dmi
from tests.mesh.local import LocalMesh, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

MakeMesh = Callable[[int], LocalMesh]
SOON_S = 2.0

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.ballast = torch.nn.Parameter(torch.zeros({floats}))
    def forward(self, x):
        return x * self.weight.mean() + self.ballast[0]
def make():
    return Net()
"""
TRAIN = """
import sys, time, torch, dmi
from net import make
run = dmi.init(seed=0, leaves=2)
model = run.model(make())
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
data = [torch.ones(4) for _ in range(4)]
for epoch in run.epochs({versions}):
    for step in run.steps(data, batch_size=4):
        for x in step:
            loss = -(x * model.weight).mean() + 0 * model.ballast.sum()
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    run.publish("grown", model="net.py:make", inputs=["x=float32[N,4]"])
    if run.is_lead:
        print("published", time.time(), flush=True)
    time.sleep({pause})
"""


KEEP = """
import sys, time, torch, dmi
from net import make
run = dmi.init(seed=0, leaves=2)
model = run.model(make())
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
data = [torch.ones(4) for _ in range(4)]
for epoch in run.epochs(200):
    for step in run.steps(data, batch_size=4):
        for x in step:
            (-(x * model.weight).mean() + 0 * model.ballast.sum()).backward()
        optimizer.step()
    run.checkpoint()
    if run.is_lead:
        print("leads", flush=True)
    time.sleep(0.2)
"""
"""Each step adds a quarter to each of four weights, so an answer to a 4 is the step that the version was made after."""


class Asking:
    """Asks one gateway again and again, from several threads: when each version was answered by first, and what failed."""

    def __init__(self, url: str) -> None:
        self.first: dict[int, float] = {}
        self.answers: dict[int, set[float]] = {}
        """What each version has answered."""
        self.failed: list[str] = []
        self.count = 0
        self._url = url
        self._over = Event()
        self._threads = [Thread(target=self._ask) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        body = json.dumps({"instances": [[4.0, 0.0, 0.0, 0.0]]}).encode()
        while not self._over.is_set():
            try:
                with urllib.request.urlopen(self._url, body, timeout=40) as answer:
                    found = json.load(answer)
            except OSError as error:
                self.failed.append(repr(error))
                continue
            self.count += 1
            self.first.setdefault(int(found["model_version"]), time.time())
            self.answers.setdefault(int(found["model_version"]), set()).add(found["predictions"][0][0])
            self._over.wait(0.005)

    def end(self) -> None:
        """No more."""
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.deep
@pytest.mark.parametrize(("versions", "pause", "megabytes"), [(4, 1.0, 1), (20, 2.5, 10)])
def test_versions_are_followed(
    make_mesh: MakeMesh, tmp_path: Path, versions: int, pause: float, megabytes: int
) -> None:
    local = make_mesh(3)
    mesh = dmi.connect(local.node(0))
    (tmp_path / "net.py").write_text(NET.format(floats=megabytes << 18))
    (tmp_path / "train.py").write_text(TRAIN.format(versions=versions, pause=pause))
    job = mesh.submit(tmp_path / "train.py", include=[tmp_path / "net.py"], workers=2, servers=1, backups=0)
    until(lambda: any(each["name"] == "grown" for each in mesh.models.versions()), 60, "a first version")
    deployment = mesh.serve("grown", replicas=2, follow=job.id)
    asking = Asking(f"{deployment.ready()[0]}/v1/models/grown:predict")
    try:
        job.wait()
        until(lambda: versions in asking.first, 30, "the last version answers")
    finally:
        asking.end()
    assert asking.failed == []
    told = [float(line.split()[1]) for _, line in job.logs() if line.startswith("published")]
    late = [asking.first[n + 1] - told[n] for n in range(versions) if n + 1 in asking.first and n > 1]
    print(f"{asking.count} requests; from publish to the first answer: {sorted(late)}")
    assert max(late) < SOON_S, late
    assert mesh.deployments()[0]["version"] == versions
    stored = [each for each in mesh.models.versions() if each["name"] == "grown"]
    assert len(stored) == min(versions, 16)


@pytest.mark.deep
def test_checkpoints_are_followed_and_the_script_knows_nothing(make_mesh: MakeMesh, tmp_path: Path) -> None:
    local = make_mesh(3)
    mesh = dmi.connect(local.node(0))
    (tmp_path / "net.py").write_text(NET.format(floats=1 << 18))
    (tmp_path / "train.py").write_text(KEEP)
    save_file({"weight": torch.zeros(4), "ballast": torch.zeros(1 << 18)}, tmp_path / "first.safetensors")
    made = f"{tmp_path / 'net.py'}:make"
    mesh.models.add("grown", made, weights=tmp_path / "first.safetensors", inputs=["x=float32[N,4]"])
    job = mesh.submit(tmp_path / "train.py", include=[tmp_path / "net.py"], workers=2, servers=2)
    deployment = mesh.serve("grown", replicas=2, follow=job.id, every=3)
    asking = Asking(f"{deployment.ready()[0]}/v1/models/grown:predict")
    try:
        until(lambda: len(asking.first) >= 4, 60, "versions come")
        lead = next(name.partition("@")[0] for name, line in job.logs() if line == "leads")
        pid = next(role["pid"] for role in mesh.roles() if f"{role['role']}-{role['index']}" == lead)
        os.kill(pid, signal.SIGKILL)
        last = max(asking.first)
        until(lambda: max(asking.first) >= last + 3, 60, "versions come from the next lead")
        job.cancel()
    finally:
        asking.end()
    assert asking.failed == []
    assert all(len(values) == 1 for values in asking.answers.values()), "a version has one answer"
    steps = [min(asking.answers[version]) for version in sorted(asking.answers)]
    assert steps == sorted(set(steps)), "each is made after a later step"
    assert steps[0] == 0
    assert all(step % 3 == 0 for step in steps[:4])
