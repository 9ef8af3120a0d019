"""Versions that a training publishes: what is told, and which files there are then."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmi.models.source import hash_of
from dmi.run.publish import Publisher
from dmi_protocol.messages.roles import Follower, Published
from dmi_protocol.model import ModelContent, ModelFile, TensorInfo


@pytest.fixture
def follower(tmp_path: Path) -> tuple[Follower, Path]:
    code = tmp_path / "blobs" / ("c" * 64)
    code.parent.mkdir()
    code.write_text("def make(): ...")
    x = TensorInfo("x", "float32", (None, 4))
    content = ModelContent("factory", (ModelFile("code", hash_of(code), 15),), (x,), factory="net:make")
    return Follower("grown", 2, content), code


def test_a_checkpoint_is_handed_over_as_it_was(tmp_path: Path, follower: tuple[Follower, Path]) -> None:
    told: list[Published] = []
    publisher = Publisher(tmp_path, told.append)
    weight = torch.arange(4.0)
    publisher.hand_over(follower[0], [str(follower[1])], 6, {"weight": weight})
    weight += 1
    publisher.close()
    (published,) = told
    assert (published.name, published.step, published.content.factory) == ("grown", 6, "net:make")
    assert published.content.inputs == follower[0].content.inputs
    found = {file.name: Path(path) for file, path in zip(published.content.files, published.paths, strict=True)}
    assert {file.name: file.blob for file in published.content.files} == {
        name: hash_of(path) for name, path in found.items()
    }
    assert load_file(found["weights"])["weight"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found["code"].read_text() == "def make(): ..."
    assert all(path.is_relative_to(tmp_path / "published") for path in found.values()), "the daemon takes them away"


def test_what_cannot_be_written_harms_no_training(
    tmp_path: Path, follower: tuple[Follower, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(tmp_path, lambda _: None)
    publisher.hand_over(follower[0], [str(tmp_path / "gone")], 6, {"weight": torch.zeros(1)})
    publisher.close()
    assert "the version of grown after step 6 is left out: " in capsys.readouterr().err
