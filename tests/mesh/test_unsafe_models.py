"""A model file that would run something is refused at every door: by the command, the SDK, an inference by path, and by the
processes of a node to which somebody gave it without asking anybody."""

import json
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

import dmi
from dmi.errors import DmiError, UsageError
from dmi.models.source import hash_of
from dmi.serve.client import Deployment
from dmi_protocol.model import ModelContent, ModelFile, TensorInfo
from tests.mesh.local import LocalMesh, command, until
from tests.tensor.test_archives import evil, exported

pytestmark = [pytest.mark.mesh, pytest.mark.deep, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

MakeMesh = Callable[[int], LocalMesh]
FILES = ("sample_inputs", "size", "guard", "operation", "of_before")


def slip_in(home: Path, name: str, path: Path) -> None:
    """Have a node keep a file that no client has tried."""
    content = ModelContent(
        "exported",
        (ModelFile("model", hash_of(path), path.stat().st_size),),
        inputs=(TensorInfo("x", "float32", (None, 4)),),
        outputs=(TensorInfo("output_0", "float32", (None, 2)),),
    )
    args = {"request": secrets.token_hex(8), "name": name, "content": msgspec.to_builtins(content)}
    dmi.connect(home).models._upload("model-add", args, {content.files[0].blob: path})


def has_failed(served: Deployment) -> bool:
    return bool(served.status()["state"] == "failed")


def test_at_every_door(make_mesh: MakeMesh, tmp_path: Path) -> None:
    mesh, good = make_mesh(2), exported()
    node = dmi.connect(mesh.node(0))
    np.save(tmp_path / "x.npy", np.ones((8, 4), np.float32))
    for kind in FILES:
        path, sign = tmp_path / f"{kind}.pt2", tmp_path / f"{kind}.sign"
        path.write_bytes(evil(good, kind, sign))
        with pytest.raises(UsageError, match="refused"):
            node.models.add("odd", path)
        shown = command("models", "add", "odd", path, home=mesh.node(1), check=False)
        assert (shown.returncode, len(shown.stderr.splitlines())) == (2, 1)
        assert "refused" in shown.stderr
        config = {"model": str(path), "input": {"kind": "npy", "path": str(tmp_path / "x.npy")}, "batch_size": 4}
        (tmp_path / "config.json").write_text(json.dumps(config))
        by_path = command("infer", tmp_path / "config.json", "--out", tmp_path / "out", home=mesh.node(0), check=False)
        assert by_path.returncode != 0
        assert "refused" in by_path.stderr

        name = kind.replace("_", "-")
        slip_in(mesh.node(0), name, path)
        inferring = node.infer({**config, "model": name}, out=tmp_path / f"{kind}.out")
        with pytest.raises(DmiError, match="refused"):
            inferring.write()
        served = node.serve(name, replicas=2)
        until(partial(has_failed, served), 60, "nobody serves it")
        assert "refused" in served.why()["sentence"]
        assert not sign.exists(), kind
