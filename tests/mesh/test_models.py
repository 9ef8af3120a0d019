"""A team keeps a model in its mesh."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import dmi
from tests.mesh.local import LocalMesh, command, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

MakeMesh = Callable[[int], LocalMesh]


def exported(path: Path, outputs: int) -> Path:
    torch.manual_seed(outputs)
    program = torch.export.export(
        nn.Linear(4, outputs), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, path)
    return path


@pytest.mark.deep
def test_versions_are_kept_on_two_nodes_and_copied_again_when_one_leaves(make_mesh: MakeMesh, tmp_path: Path) -> None:
    mesh = make_mesh(3)
    first, second = exported(tmp_path / "a.pt2", 3), exported(tmp_path / "b.pt2", 5)
    added = json.loads(command("models", "add", "m", first, "--json", home=mesh.node(0)).stdout)
    assert added["id"] == "m:1"
    assert "n0" in added["nodes"]
    assert len(added["nodes"]) == 2
    models = dmi.connect(mesh.node(2)).models
    assert models.add("m", first)["id"] == "m:1", "the same bytes are the same version, whichever node is asked"
    assert models.add("m", second)["outputs"][0]["shape"] == [None, 5]
    assert [version["id"] for version in models.versions()] == ["m:1", "m:2"]
    assert models.show("m")["id"] == "m:2"

    gone = next(name for name in models.show("m:2")["nodes"] if name != "n2")
    mesh.kill(int(gone[1:]))
    command("expel", gone, home=mesh.node(2))
    until(lambda: len(models.show("m:2")["nodes"]) == 2, 60, "a second copy")
    assert gone not in models.show("m:2")["nodes"]
    assert models.remove("m:1") == ["m:1"]
    refused = command("models", "show", "m:1", home=mesh.node(2), check=False)
    assert (refused.returncode, refused.stderr.strip()) == (1, "no model is named 'm:1'; `dmi-node models` lists them")
