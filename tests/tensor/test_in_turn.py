"""Stages that one process computes in turn: the bits of the whole, and each batch's own fate."""

from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from dmi_protocol.identity import BlobHash
from dmi_protocol.model import ModelFile, ModelStage
from dmi_tensor.cutting import cut
from dmi_tensor.in_turn import StagesInTurn
from dmi_tensor.models import load
from tests.tensor.test_cutting import Deep, exported


class Picky(nn.Module):
    """An index that is out of range is found in the second half."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.table = nn.Embedding(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0].abs().to(torch.int64)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = x + self.table(rows)
        return found


def in_turn(module: nn.Module, given: Tensor, most_bytes: int, folder: Path) -> tuple[StagesInTurn, nn.Module]:
    content, files = exported(module, given, folder)
    made = cut(content, files, most_bytes, folder)
    assert len(made.stages) > 1
    graph, paths, stages = ModelFile("graph", BlobHash("g"), 1), {BlobHash("g"): made.graph}, []
    for place, stage in enumerate(made.stages):
        weights = ModelFile("weights", BlobHash(f"w{place}"), 1)
        paths[weights.blob] = stage.weights
        stages.append(ModelStage((graph, weights), stage.first, stage.last, stage.weight_bytes))
    return StagesInTurn(replace(content, stages=tuple(stages)), paths), load(content.format, files)  # type: ignore[return-value]


def test_they_give_the_bits_of_the_whole(tmp_path: Path) -> None:
    stages, whole = in_turn(Deep(), torch.zeros(2, 64), 100_000, tmp_path)
    inputs = [{"x": torch.randn(rows, 64)} for rows in (1, 5, 32)]
    for batch, found in zip(inputs, stages.run_each(inputs), strict=True):
        assert isinstance(found, dict)
        wanted = whole.run(batch)  # type: ignore[operator]
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert stages.carried_bytes >= 32 * 64 * 4


def test_a_batch_that_the_model_does_not_take_costs_no_other_one(tmp_path: Path) -> None:
    stages, whole = in_turn(Picky(), torch.zeros(2, 8), 700, tmp_path)
    good, bad = {"x": torch.ones(2, 8)}, {"x": torch.full((2, 8), 9.0)}
    first, failed, last = stages.run_each([good, bad, good])
    assert isinstance(failed, IndexError)
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    assert torch.equal(first["output_0"], whole.run(good)["output_0"])  # type: ignore[operator]
    assert torch.equal(first["output_0"], last["output_0"])
