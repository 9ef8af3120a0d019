"""Cutting models into stages: by memory, and without changing a bit."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file
from torch import Tensor, nn

from dmi_protocol.identity import BlobHash
from dmi_protocol.model import ModelContent, ModelFile, ModelStage
from dmi_tensor.cutting import Cut, cut
from dmi_tensor.models import ModelError, describe, drawn, example, load
from dmi_tensor.stages import StageGraph, load_stage


class Block(nn.Module):
    """With a residual, a size that is computed with, and an operation in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu_(self.up(self.norm(x))))
        y += x
        return y.view(x.shape[0], -1)


class Deep(nn.Module):
    """Blocks, weights that are used at both ends, a constant, and two outputs."""

    def __init__(self, width: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.first(x)
        for block in self.blocks:
            y = block(y)
        return {"scores": y @ self.first.weight + torch.tensor([2.0]), "mean": y.mean(1)}


class Conv(nn.Module):
    """Convolutions with batch norm, as images have them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.nb = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.relu(self.na(self.a(image)), inplace=True)
        y = self.nb(self.b(x))
        y += x
        low, high = torch.relu(y).split(8, dim=1)
        found: Tensor = self.head(torch.cat([low, high], 1).mean((2, 3)))
        return found


class ChannelsLast(nn.Module):
    """What it computes lies in memory in another order than it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        x = image.to(memory_format=torch.channels_last)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.transpose(1, 2).mean((2, 3))


class Attention(nn.Module):
    """A transformer's encoder over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(self.embed(tokens)))
        return found


class Aliased(nn.Module):
    """It writes into what it has computed by another view, and then uses the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        part = y.view(-1, 8)
        z = self.layers[2](self.layers[1](x))
        part.add_(z.view(-1, 8))
        found: Tensor = self.layers[3](z) + y
        return found


class Counting(nn.Module):
    """It is another one after each batch."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        found: Tensor = self.linear(x)
        return found


def exported(module: nn.Module, example_: Tensor, directory: Path) -> tuple[ModelContent, dict[str, Path]]:
    torch.manual_seed(0)
    free = ({0: torch.export.Dim.AUTO},)
    path = directory / "model.pt2"
    torch.export.save(torch.export.export(module.eval(), (example_,), dynamic_shapes=free), path)
    content = ModelContent("exported", (ModelFile("model", BlobHash("a" * 64), path.stat().st_size),))
    return describe(content, {"model": path}), {"model": path}


def in_stages(content: ModelContent, made: Cut) -> list[StageGraph]:
    """Each as its process loads it, from its files alone."""
    graph = ModelFile("graph", BlobHash("b" * 64), 1)
    cut_content = replace(
        content, stages=tuple(ModelStage((graph,), each.first, each.last, each.weight_bytes) for each in made.stages)
    )
    return [
        load_stage(cut_content, place, {"graph": made.graph, "weights": each.weights})
        for place, each in enumerate(made.stages)
    ]


def computed(stages: list[StageGraph], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    for stage in stages:
        inputs = {name: tensor.clone() for name, tensor in stage.run(inputs).items()}  # as between processes
    return inputs


@pytest.mark.parametrize(
    ("module", "given", "most_bytes"),
    [
        (Deep(), torch.zeros(2, 64), 100_000),
        (Conv(), torch.zeros(2, 3, 12, 12), 9_600),
        (ChannelsLast(), torch.zeros(2, 8, 12, 12), 2_400),
        (Aliased(), torch.zeros(2, 16), 3_300),
        (Attention(), torch.zeros(2, 7, dtype=torch.int64), 20_000),
    ],
    ids=["deep", "conv", "channels last", "aliased", "attention"],
)
def test_stages_hold_no_more_than_they_may_and_give_the_bits_of_the_whole(
    module: nn.Module, given: Tensor, most_bytes: int, tmp_path: Path
) -> None:
    content, files = exported(module, given, tmp_path)
    made = cut(content, files, most_bytes, tmp_path)
    sizes = [sum(t.nbytes for t in load_file(stage.weights).values()) for stage in made.stages]
    assert len(sizes) >= 2
    assert max(sizes) <= most_bytes
    assert made.graph.stat().st_size < 300_000, "it has no weights"
    whole, stages = load(content.format, files), in_stages(content, made)
    for rows in (1, 2, 5, 32):
        inputs = {info.name: drawn(example(info, rows), torch.Generator().manual_seed(rows)) for info in content.inputs}
        wanted, found = whole.run(inputs), computed(stages, inputs)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_weights_are_dealt_evenly(tmp_path: Path) -> None:
    content, files = exported(Deep(blocks=8), torch.zeros(2, 64), tmp_path)
    total = files["model"].stat().st_size
    made = cut(content, files, total // 3, tmp_path)
    sizes = [stage.weights.stat().st_size for stage in made.stages]
    assert max(sizes) < 1.4 * min(sizes), sizes


def test_a_factory_is_cut_as_a_program_is(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(
        "import torch\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(8)), torch.nn.ReLU())\n"
    )
    content = describe(
        ModelContent("factory", (ModelFile("code", BlobHash("c" * 64), 1),), factory="net:make"), {"code": code}
    )
    made = cut(content, {"code": code}, 3_000, tmp_path)
    assert len(made.stages) == 4
    inputs = {content.inputs[0].name: torch.randn(3, 16)}
    whole = load("factory", {"code": code}, "net:make")
    (wanted,), (found,) = whole.run(inputs).values(), computed(in_stages(content, made), inputs).values()
    assert torch.equal(wanted, found)


def test_what_cannot_be_cut_is_refused_in_one_line(tmp_path: Path) -> None:
    content, files = exported(Deep(), torch.zeros(2, 64), tmp_path)
    with pytest.raises(ModelError, match=r"around \S+ has 3\d,\d+ bytes of weights, and 1,000 may be held"):
        cut(content, files, 1_000, tmp_path)
    content, files = exported(Counting(), torch.zeros(2, 4), tmp_path)
    with pytest.raises(ModelError, match="changes its own seen"):
        cut(content, files, 1_000, tmp_path)
    script = ModelContent("torchscript", ())
    with pytest.raises(ModelError, match=r"TorchScript file cannot be cut into stages: save it with torch\.export"):
        cut(script, {}, 1_000, tmp_path)
