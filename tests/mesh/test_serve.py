"""Models that are served: real clients, and hosts that die under load."""

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from safetensors.torch import save_file

import dmi
from dmi.errors import RefusedError, UnknownJobError
from dmi.mesh import Mesh
from tests.mesh.load import WIDTH, Load, expected, write_model
from tests.mesh.local import ROOT, LocalMesh, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

MakeMesh = Callable[[int], LocalMesh]


class Serving:
    """A model that the mesh of the session serves."""

    def __init__(self, local: LocalMesh, path: Path) -> None:
        self.mesh: Mesh = dmi.connect(local.node(0))
        self.mesh.models.add("numbers", path)
        self.urls = json.loads(command("serve", "numbers", "--json", home=local.node(1)).stdout)["urls"]

    @property
    def address(self) -> str:
        """Of a gateway, without a scheme."""
        return str(self.urls[0]).removeprefix("http://")


@pytest.fixture(scope="module")
def served(five: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    found = Serving(five, write_model(tmp_path_factory.mktemp("model") / "numbers.pt2"))
    yield found
    command("unserve", "numbers", home=five.node(0))
    until(lambda: not found.mesh.roles(), 20, "all processes end")
    found.mesh.models.remove("numbers")


def rows(count: int) -> "np.ndarray[Any, Any]":
    return np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH)


def answers(values: "np.ndarray[Any, Any]", version: int = 1) -> list[list[float]]:
    return [expected([int(value) for value in row], version) for row in values]


def test_status_shows_what_is_served(served: Serving, five: LocalMesh) -> None:
    until(lambda: len(served.mesh.deployments()[0]["replicas"]) == 2, 20, "two replicas")
    status = five.status(2)
    (found,) = status["deployments"]
    assert (found["model"], found["version"], found["state"]) == ("numbers", 1, "running")
    until(lambda: len(served.mesh.deployments()[0]["gateways"]) == 5, 20, "a gateway on each node")
    assert len(found["replicas"]) == 2
    text = command("status", home=five.node(3)).stdout
    assert "numbers:1" in text
    assert {role["role"] for role in served.mesh.roles()} == {"gateway", "replica"}


def test_large_batches_through_shared_memory_and_over_the_network(served: Serving, five: LocalMesh) -> None:
    """Two of five gateways have a replica beside them: all give the same answers, however large, and many at once."""
    values = [rows(count) + offset for offset, count in enumerate((1, 1_000, 4_000, 1_001, 3, 4_096))]

    def ask(nth: int) -> None:
        given = values[nth % len(values)]
        found = triton.InferInput("x", list(given.shape), "FP32")
        found.set_data_from_numpy(given)
        url = served.urls[nth % len(served.urls)]
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:  # which is of one thread
            answer = client.infer("numbers", [found])
        weights = np.arange(2 * WIDTH, dtype=np.float32).reshape(WIDTH, 2)
        np.testing.assert_array_equal(answer.as_numpy("output_0"), given @ weights + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(90)))


def test_predict(served: Serving) -> None:
    values = rows(3)
    assert served.mesh.predict("numbers", values).tolist() == answers(values)
    tensor = served.mesh.predict("numbers", {"x": torch.from_numpy(values)}, version=1)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == answers(values)
    assert served.mesh.predict("numbers", values.tolist()).tolist() == answers(values)
    with pytest.raises(RefusedError, match=r"inputs\[0\].shape"):
        served.mesh.predict("numbers", values[:, :2])
    with pytest.raises(UnknownJobError, match="nothing is served as 'letters'"):
        served.mesh.predict("letters", values)


async def test_await_predict(served: Serving, five: LocalMesh) -> None:
    mesh = await dmi.aio.connect(five.node(4))
    assert (await mesh.predict("numbers", rows(1))).tolist() == answers(rows(1))


@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient(served: Serving, packing: str | None, *, is_binary: bool) -> None:
    with triton.InferenceServerClient(served.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("numbers")
        values = rows(600)
        given = triton.InferInput("x", list(values.shape), "FP32")
        given.set_data_from_numpy(values, binary_data=is_binary)
        wanted = [triton.InferRequestedOutput("output_0", binary_data=is_binary)]
        for outputs in (wanted, None):
            found = client.infer(
                "numbers",
                [given],
                outputs=outputs,
                request_id="7",
                model_version="1",
                request_compression_algorithm=packing,
                response_compression_algorithm=packing,
                timeout=5_000_000,
            )
            assert found.as_numpy("output_0").tolist() == answers(values)
            assert (found.get_response()["id"], found.get_response()["model_version"]) == ("7", "1")


def test_tritonclient_asks_what_is_there(served: Serving) -> None:
    with triton.InferenceServerClient(served.address) as client:
        assert client.get_server_metadata()["name"] == "dmi"
        assert client.get_model_metadata("numbers")["inputs"][0]["shape"] == [-1, WIDTH]
        assert client.get_model_config("numbers")["max_batch_size"] == 32
        before = client.get_inference_statistics("numbers")["model_stats"][0]["inference_count"]
        given = triton.InferInput("x", [2, WIDTH], "FP32")
        given.set_data_from_numpy(rows(2))
        client.infer("numbers", [given])
        assert client.get_inference_statistics()["model_stats"][0]["inference_count"] == before + 2
        assert client.get_model_repository_index()[0]["state"] == "READY"
        client.load_model("numbers")
        assert not client.is_model_ready("numbers", "9")
        with pytest.raises(triton.InferenceServerException, match="unserve"):
            client.unload_model("numbers")
        given.set_data_from_numpy(rows(2))
        with pytest.raises(triton.InferenceServerException, match="no model 'letters'"):
            client.infer("letters", [given])
        wrong = triton.InferInput("x", [2, WIDTH + 1], "FP32")
        wrong.set_data_from_numpy(np.zeros((2, WIDTH + 1), np.float32))
        with pytest.raises(triton.InferenceServerException, match=r"inputs\[0\].shape"):
            client.infer("numbers", [wrong])


async def test_tritonclient_with_await(served: Serving) -> None:
    async with triton_aio.InferenceServerClient(served.address) as client:
        assert await client.is_model_ready("numbers")
        given = triton_aio.InferInput("x", [3, WIDTH], "FP32")
        given.set_data_from_numpy(rows(3))
        found = await client.infer("numbers", [given])
        assert found.as_numpy("output_0").tolist() == answers(rows(3))


def test_a_proxy_in_the_environment_changes_nothing_for_predict(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert served.mesh.predict("numbers", rows(1)).tolist() == answers(rows(1))


def test_many_at_once_are_each_answered_with_their_own(served: Serving) -> None:
    load = Load(served.urls[1], "numbers", 2_000, connections=32)
    load.wait()
    assert (load.failed, load.wrong, load.done) == ([], [], 2_000)


def test_what_cannot_be_served(served: Serving, five: LocalMesh) -> None:
    for arguments, code, text in (
        (("serve", "numbers"), 1, "numbers is served already"),
        (("serve", "letters"), 1, "no model is named 'letters'"),
        (("serve", "numbers", "--version", 9), 1, "no model is named 'numbers:9'"),
        (("unserve", "letters"), 1, "nothing is served as 'letters'"),
        (("models", "rm", "numbers"), 1, "numbers:1 is used by"),
        (("serve", "numbers", "--replicas", "many"), 2, "neither a number nor auto"),
        (("serve", "numbers", "--replicas", 2, "--max", 3), 2, "replicas='auto'"),
        (("serve", "numbers", "--cert", "c.pem"), 2, "--cert and --key"),
    ):
        done = command(*arguments, home=five.node(0), check=False)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr


class Fleet:
    """Four nodes that serve two versions of a model, and requests to the gateway of one that is not the coordinator: nothing
    happens to ``mine``."""

    def __init__(self, local: LocalMesh, folder: Path) -> None:
        self.local = local
        self.coordinator = int(local.status()["coordinator"][1:])
        self.mine, self.victim, self.other = [index for index in range(4) if index != self.coordinator]
        self.mesh = dmi.connect(local.node(self.mine))
        for version in (1, 2):
            self.mesh.models.add("numbers", write_model(folder / f"numbers{version}.pt2", version))
        self.mesh.serve("numbers:1", replicas=4).ready()
        until(lambda: (len(self.served["replicas"]), len(self.served["gateways"])) == (4, 4), 40, "all processes")
        gateway = self.served["urls"][self.served["gateways"].index(f"n{self.mine}")]
        self.load = Load(gateway, "numbers", connections=8, pause_s=0.005)

    @property
    def served(self) -> dict[str, Any]:
        """The deployment."""
        return dict(self.mesh.deployments()[0])

    def swap(self, version: int) -> None:
        """Replicas compute with it."""
        self.mesh.models.promote(f"numbers:{version}")
        before = self.load.versions[version]
        until(lambda: self.load.versions[version] > before + 100, 60, f"version {version} answers")

    def kill_a_replica(self) -> None:
        """With all that it has in hand."""
        node = f"n{self.other}"
        role = next(role for role in self.mesh.roles() if role["role"] == "replica" and role["node"] == node)
        os.kill(role["pid"], signal.SIGKILL)

    def end(self) -> None:
        """Every request was answered, by the version that the answer names, and with what was asked."""
        self.load.end()
        assert (self.load.failed, self.load.wrong) == ([], [])
        assert self.load.versions.total() == self.load.done


def test_no_request_fails_though_a_replica_and_a_node_are_killed(make_mesh: MakeMesh, tmp_path: Path) -> None:
    fleet = Fleet(make_mesh(4), tmp_path)
    fleet.kill_a_replica()
    fleet.local.kill(fleet.victim)
    fleet.swap(2)
    fleet.end()


@pytest.mark.deep
def test_no_request_of_twenty_thousand_fails_whoever_is_killed(make_mesh: MakeMesh, tmp_path: Path) -> None:
    """A replica, a node, then the coordinator are killed, another node is drained, and the version is swapped five times."""
    fleet = Fleet(make_mesh(4), tmp_path)
    local, mesh, other, victim = fleet.local, fleet.mesh, f"n{fleet.other}", f"n{fleet.victim}"
    fleet.swap(2)
    fleet.kill_a_replica()
    fleet.swap(1)
    local.kill(fleet.victim)
    fleet.swap(2)
    local.start(fleet.victim)
    until(lambda: victim in fleet.served["replicas"], 60, "the node that was killed serves again")
    until(lambda: sum(each["voter"] and each["state"] == "alive" for each in mesh.members()) >= 3, 60, "three voters")
    fleet.swap(1)
    command("drain", other, home=local.node(fleet.mine))
    until(
        lambda: other not in fleet.served["replicas"] + fleet.served["gateways"], 60, "the drained node serves no more"
    )
    command("drain", other, "--undo", home=local.node(fleet.mine))
    local.kill(fleet.coordinator)
    until(lambda: mesh.status()["coordinator"] not in {None, f"n{fleet.coordinator}"}, 60, "another coordinator")
    mesh.models.rollback("numbers")
    before = fleet.load.versions[2]
    until(lambda: fleet.load.versions[2] > before + 100, 60, "the version before answers")
    until(lambda: fleet.load.done >= 20_000, 120, "twenty thousand requests")
    fleet.end()


ODD = '''
import os, torch
class Odd(torch.nn.Module):
    """An embedding of ten words; the word 9 ends the process, the word 8 takes long."""
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(10, 2)
        torch.nn.init.ones_(self.words.weight)
    def forward(self, x):
        if (x == 9).any():
            os.kill(os.getpid(), 11)
        if (x == 8).any():
            torch.zeros(1)
            import time
            time.sleep(60)
        return self.words(x).sum(1)
def make():
    return Odd()
'''


class Odd:
    """A model that some requests are bad for, on two replicas that take eight at a time."""

    def __init__(self, local: LocalMesh, folder: Path) -> None:
        (folder / "odd.py").write_text(ODD)
        state = {"words.weight": torch.ones(10, 2)}
        save_file(state, folder / "odd.safetensors")
        self.mesh = dmi.connect(local.node(0))
        self.mesh.models.add(
            "odd", f"{folder / 'odd.py'}:make", weights=folder / "odd.safetensors", inputs=["x=int64[N,?]"]
        )
        deployment = self.mesh.serve("odd", max_batch=8, max_wait_ms=50)
        self.url = deployment.ready()[0]
        until(lambda: len(self.mesh.deployments()[-1]["replicas"]) == 2, 30, "two replicas")

    def ask(self, words: list[list[int]], within_s: float = 20, datatype: str = "INT64") -> tuple[int, Any]:
        """The status, and the sums or what is wrong."""
        shape = [len(words), len(words[0]) if words else 0]
        body = {
            "inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": [w for ws in words for w in ws]}]
        }
        request = urllib.request.Request(
            f"{self.url}/v2/models/odd/infer", json.dumps(body).encode(), {"Timeout": str(within_s)}
        )
        try:
            with urllib.request.urlopen(request, timeout=within_s + 10) as answer:
                (output,) = json.load(answer)["outputs"]
                return 200, output["data"][::2]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]


@pytest.fixture(scope="module")
def odd(five: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    found = Odd(five, tmp_path_factory.mktemp("odd"))
    yield found
    command("unserve", "odd", home=five.node(0))
    until(lambda: all(role["job"][:3] != "odd" for role in found.mesh.roles()), 20, "all processes end")
    found.mesh.models.remove("odd")


@pytest.mark.parametrize(
    ("words", "datatype", "status", "said"),
    [
        ([[1, 2, 3, 4]], "INT64", 200, [4.0]),
        ([[99, 1]], "INT64", 400, "index out of range"),
        ([[1, 2]], "INT32", 400, "inputs[0].datatype"),
        ([[1, 2]] * 300, "INT64", 200, [2.0] * 300),
        ([], "INT64", 200, []),
        ([[9, 1]], "INT64", 500, "ended 2 processes"),
    ],
    ids=["another shape", "out of range", "another dtype", "many rows", "no rows", "ends its process"],
)
def test_one_request_spoils_nothing(odd: Odd, words: list[list[int]], datatype: str, status: int, said: Any) -> None:
    """Seven good ones go with it, and one comes after it."""
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(odd.ask, [[nth, 1]]) for nth in range(7)]
        spoiler = pool.submit(odd.ask, words, datatype=datatype)
        assert [each.result() for each in good] == [(200, [2.0])] * 7
        found = spoiler.result()
    assert found[0] == status, found
    assert found[1] == said if status == 200 else said in found[1], found
    assert odd.ask([[1, 1]]) == (200, [2.0])


def test_what_takes_too_long_is_given_up_and_its_replica_goes_on(odd: Odd) -> None:
    status, said = odd.ask([[8, 8]], within_s=1)
    assert (status, "in its time" in said) == (504, True)
    assert odd.ask([[1, 1]]) == (200, [2.0])
    pids = {role["pid"] for role in odd.mesh.roles() if role["role"] == "replica"}
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_lines_of_the_document_work(served: Serving) -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 5
    for line in lines:
        here = line.replace("http://127.0.0.1:8100", served.urls[0]).replace("digits", "numbers")
        done = subprocess.run([*shlex.split(here), "--silent", "--fail-with-body"], capture_output=True, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if " -d " in line:
            found = json.loads(done.stdout)
            given = found["outputs"][0]["data"] if "outputs" in found else found["predictions"][0]
            assert given == expected([1, 2, 3, 4, 5, 6], 1)


def test_versions_are_promoted_tried_and_gone_back_from(served: Serving, five: LocalMesh, tmp_path: Path) -> None:
    """A canary gets its share; one that cannot be loaded harms nobody; rollback stays."""
    served.mesh.models.add("numbers", write_model(tmp_path / "numbers.pt2", 2))
    home = five.node(2)
    said = json.loads(command("serve", "numbers", "--canary", 2, "--share", 30, "--json", home=home).stdout)
    assert said == {"model": "numbers", "version": 1, "canary": 2, "share": 30, "pinned": False}
    until(lambda: _versions_of(served, 40)[2], 30, "the canary answers")
    load = Load(served.urls[0], "numbers", 400)
    load.wait()
    assert (load.failed, load.wrong) == ([], [])
    assert 60 < load.versions[2] < 190
    assert served.mesh.predict("numbers", rows(1), version=2).tolist() == answers(rows(1), 2)
    assert "numbers:1 (and 30% :2)" in command("status", home=home).stdout
    command("models", "promote", "numbers:2", home=home)
    until(lambda: _versions_of(served, 10) == {2: 10}, 30, "version 2 answers everything")
    flag = tmp_path / "flag"
    (tmp_path / "bad.py").write_text(
        f"import pathlib, torch\ndef make():\n    if pathlib.Path({str(flag)!r}).exists():\n"
        f"        raise RuntimeError('broken today')\n    return torch.nn.Linear({WIDTH}, 2)\n"
    )
    save_file({"weight": torch.ones(2, WIDTH), "bias": torch.ones(2)}, tmp_path / "bad.safetensors")
    served.mesh.models.add("numbers", f"{tmp_path / 'bad.py'}:make", weights=tmp_path / "bad.safetensors")
    flag.touch()
    served.mesh.models.promote("numbers")
    until(lambda: "numbers:3 cannot be loaded" in command("why", "numbers", home=home).stdout, 30, "it is refused")
    assert _versions_of(served, 10) == {2: 10}
    command("models", "rollback", "numbers", home=home)
    until(lambda: _versions_of(served, 10) == {1: 10}, 30, "version 1 answers everything")
    assert served.mesh.deployments()[0]["pinned"]


def _versions_of(served: Serving, count: int) -> Counter[int]:
    """By which versions so many requests are answered now."""
    load = Load(served.urls[0], "numbers", count)
    load.wait()
    assert (load.failed, load.wrong) == ([], [])
    return load.versions


@pytest.mark.deep
def test_replicas_follow_the_load(make_mesh: MakeMesh, tmp_path: Path) -> None:
    """Asleep; woken by a request, which is answered; more when it is busy."""
    local = make_mesh(3)
    mesh = dmi.connect(local.node(0))
    (tmp_path / "slow.py").write_text(
        "import time, torch\nclass Slow(torch.nn.Module):\n    def forward(self, x):\n"
        "        time.sleep(0.05)\n        return x * self.one\n"
        "def make():\n    made = Slow()\n    made.register_buffer('one', torch.ones(1))\n    return made\n"
    )
    save_file({"one": torch.ones(1)}, tmp_path / "slow.safetensors")
    mesh.models.add(
        "slow", f"{tmp_path / 'slow.py'}:make", weights=tmp_path / "slow.safetensors", inputs=["x=float32[N,2]"]
    )
    command("serve", "slow", "--replicas", 0, "--max", 3, "--max-batch", 1, home=local.node(1))
    assert not mesh.deployments()[0]["replicas"]
    assert "asleep" in command("why", "slow", home=local.node(1)).stdout
    began = time.monotonic()
    assert mesh.predict("slow", [[1.0, 2.0]]).tolist() == [[1.0, 2.0]]
    assert time.monotonic() - began < 10
    with ThreadPoolExecutor(8) as pool:
        end = time.monotonic() + 40

        def ask() -> None:
            while time.monotonic() < end and len(mesh_of().deployments()[0]["replicas"]) < 3:
                assert mesh_of().predict("slow", [[1.0, 2.0]]).tolist() == [[1.0, 2.0]]

        def mesh_of() -> Mesh:
            connected: Mesh = dmi.connect(local.node(0))
            return connected

        for done in [pool.submit(ask) for _ in range(8)]:
            done.result()
    assert len(mesh.deployments()[0]["replicas"]) == 3


KSERVE = ROOT / ".venv-kserve" / "bin" / "python"
"""`make test-all` makes it: kserve wants other versions of what we use."""


@pytest.mark.deep
@pytest.mark.skipif(not KSERVE.exists(), reason="no environment with kserve: `make .venv-kserve/.ready`")
def test_kserves_client(served: Serving) -> None:
    script = ROOT / "tests" / "mesh" / "scripts" / "kserve_client.py"
    done = subprocess.run(
        [KSERVE, script, served.urls[0], "numbers"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
