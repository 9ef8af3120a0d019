"""Models are tried in a child process, and reach a node that keeps them."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dmi
from dmi.errors import UsageError
from dmi.models.source import source_of
from tests.sdk.fake_node import JOB, Client, FakeNode, value

pytestmark = pytest.mark.processes


def kept(client: Client, args: dict[str, Any]) -> object:
    """A ``model-add`` verb that needs everything."""
    blobs = [file["blob"] for file in args["content"]["files"]]
    client.send({"need": blobs})
    for blob in blobs:
        data = b""
        while "chunk" in (piece := client.receive()):
            data += piece["chunk"]
        assert hashlib.sha256(data).hexdigest() == blob
    return {"id": f"{args['name']}:1", "content": args["content"]}


def test_a_function_travels_with_its_weights(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\nprint('hello')\ndef make():\n    return torch.nn.Linear(4, 3)\n")
    save_file(nn.Linear(4, 3).state_dict(), tmp_path / "w.safetensors")
    with FakeNode(tmp_path / "n0", **{"model-add": kept}):
        models = dmi.connect(tmp_path / "n0").models
        added = models.add("net", f"{tmp_path}/net.py:make", weights=tmp_path / "w.safetensors")
    assert added["id"] == "net:1"
    content = added["content"]
    assert (content["format"], content["factory"]) == ("factory", "net:make")
    assert [file["name"] for file in content["files"]] == ["code", "weights"]
    assert content["inputs"][0]["shape"] == [None, 4]


def test_a_model_that_ends_its_process_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import os\ndef make():\n    os.kill(os.getpid(), 9)\n")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="ended its trial run by signal SIGKILL"):
        source_of(f"{tmp_path}/net.py:make", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("given", "more", "words"),
    [
        ("net.py:make", {}, "there is no file net.py"),
        ("json:loads", {}, "give its weights"),
        ("m.pt", {"weights": "w"}, "a model file has its own"),
        ("m.pt", {"inputs": ["x"]}, "--input takes NAME=DTYPE"),
        ("m.pt", {"inputs": ["x=float32[]"]}, "--input takes NAME=DTYPE"),
        ("json:loads", {"weights": __file__}, "no safetensors file"),
        ("json:loads", {"weights": "nowhere"}, "cannot be read"),
    ],
)
def test_what_is_given_wrongly_is_told(given: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        source_of(given, **more)


def test_a_job_needs_the_function_and_must_have_succeeded(tmp_path: Path) -> None:
    going_on = JOB | {"state": "running"}
    with FakeNode(tmp_path / "n0", why=value({"job": JOB["id"]}), jobs=value([going_on])):
        models = dmi.connect(tmp_path / "n0").models
        with pytest.raises(UsageError, match=r"--model net\.py:make"):
            models.add("net", job="digits")
        with pytest.raises(UsageError, match="is running: a model is taken from a training that has succeeded"):
            models.add("net", job="digits", model="net.py:make")
        with pytest.raises(UsageError, match="give a model file"):
            models.add("net")
