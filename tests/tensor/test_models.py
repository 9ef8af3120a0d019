"""What goes into a model and what comes out, found by running it; and weights that are not its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file
from torch import Tensor, nn

from dmi_protocol.model import Format, ModelContent, TensorInfo
from dmi_tensor.models import ModelError, describe, example, load

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Many(nn.Module):
    """Everything that a module may return."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"a": y, "b": (self.dropout(x), None, [y.sum()]), "i": y.argmax(1), "h": y.bfloat16(), "t": y > 0}


def exported(path: Path, module: nn.Module, *inputs: Tensor, free: bool = True) -> dict[str, Path]:
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if free else None
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), path / "m.pt2")
    return {"model": path / "m.pt2"}


def scripted(path: Path, module: nn.Module) -> dict[str, Path]:
    torch.jit.script(module).save(path / "m.pt")
    return {"model": path / "m.pt"}


def found(form: Format, files: dict[str, Path], *said: TensorInfo, factory: str = "") -> ModelContent:
    return describe(ModelContent(form, (), factory=factory), files, said)


def shapes(infos: tuple[TensorInfo, ...]) -> dict[str, tuple[int | None, ...]]:
    return {info.name: info.shape for info in infos}


def test_whatever_a_module_returns_has_names(tmp_path: Path) -> None:
    content = found("exported", exported(tmp_path, Many().eval(), torch.zeros(2, 4)))
    assert shapes(content.inputs) == {"x": (None, 4)}
    assert {(info.name, info.dtype, info.is_batched) for info in content.outputs} == {
        ("a", "float32", True),
        ("b.0", "float32", True),
        ("b.2.0", "float32", False),
        ("i", "int64", True),
        ("h", "bfloat16", True),
        ("t", "bool", True),
    }


def test_a_tuple_has_numbered_outputs_and_a_tensor_the_first(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, x[:, :2]

    outputs = found("exported", exported(tmp_path, Two(), torch.zeros(2, 4))).outputs
    assert shapes(outputs) == {"output_0": (None, 4), "output_1": (None, 2)}
    one = found("torchscript", scripted(tmp_path, nn.Linear(4, 3)))
    assert shapes(one.outputs) == {"output_0": (None, 3)}


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
            (None, 3, None, None),
        ),
        (  # too deep for a picture of 8 pixels
            nn.Sequential(
                *(nn.Conv2d(3, 3, 3, stride=2) for _ in range(4)),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(3, 2),
            ),
            (None, 3, None, None),
        ),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 5)), (None, 1, 28, 28)),
        (nn.Sequential(nn.Linear(7, 3), nn.ReLU()), (None, 7)),
        (nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 3)), (None, 28 * 28)),
    ],
)
def test_what_a_script_takes_is_found_by_its_first_weights(
    tmp_path: Path, module: nn.Module, shape: tuple[int | None, ...]
) -> None:
    content = found("torchscript", scripted(tmp_path, module))
    assert [(info.dtype, info.shape) for info in content.inputs] == [("float32", shape)]


def test_what_cannot_be_found_is_asked_for_and_taken_from_the_user(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(9, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            both = torch.cat([x.reshape(-1, 5), y.reshape(-1, 4)], 1)
            return torch.sigmoid(self.linear(both))

    files = scripted(tmp_path, Odd())
    with pytest.raises(ModelError, match=r"say it, as in --input x=float32\[N,3,224,224\] --input y="):
        found("torchscript", files)
    y, x = TensorInfo("y", "float32", (None, 4)), TensorInfo("x", "float32", (None, 5))
    assert [info.name for info in found("torchscript", files, y, x).inputs] == ["x", "y"]
    with pytest.raises(ModelError, match="its inputs are x, y"):
        found("torchscript", files, x)
    with pytest.raises(ModelError, match=r"a trial run with x \(2, 5\) float32, y \(2, 5\) float32 raised"):
        found("torchscript", files, x, replace(y, shape=(None, 5)))


def test_a_model_that_draws_is_refused_and_a_script_is_put_into_evaluation_mode(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="training mode; call eval"):
        found("exported", exported(tmp_path, Many().train(), torch.zeros(2, 4)))
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    files = scripted(tmp_path, module)
    found("torchscript", files)
    x = torch.ones(2, 4)
    assert torch.equal(load("torchscript", files).run({"input": x})["output_0"], module.eval()(x))


def test_a_batch_of_one_size_is_told(tmp_path: Path) -> None:
    content = found("exported", exported(tmp_path, nn.Linear(4, 3), torch.zeros(2, 4), free=False))
    assert (content.inputs[0].shape, content.outputs[0].is_batched) == ((2, 4), True)


def test_a_model_whose_outputs_have_no_batch_is_refused(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(ModelError, match="no output has the batch"):
        found("exported", exported(tmp_path, Sum(), torch.zeros(2, 4)))


CODE = """
import torch
def make():
    return torch.nn.Linear(4, 3)
def tied():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    return module
def number():
    return 3
def broken():
    raise RuntimeError("no luck")
"""


def test_a_function_and_its_weights_are_a_model(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    module = nn.Linear(4, 3)
    save_file(module.state_dict(), tmp_path / "w")
    (tmp_path / "net.py").rename(tmp_path / "c0de")  # as it lies among the blobs
    files = {"code": tmp_path / "c0de", "weights": tmp_path / "w"}
    content = found("factory", files, factory="net:make")
    assert shapes(content.inputs) == {"input": (None, 4)}
    x = torch.randn(2, 4)
    assert torch.equal(load("factory", files, "net:make").run({"input": x})["output_0"], module(x))


def test_weights_that_are_there_once_fill_tied_tensors(tmp_path: Path) -> None:
    """Exports have a tied tensor once, under its first name."""
    (tmp_path / "net.py").write_text(CODE)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    save_file({name: tensor for name, tensor in module.state_dict().items() if name != "1.weight"}, tmp_path / "w")
    loaded = load("factory", {"code": tmp_path / "net.py", "weights": tmp_path / "w"}, "net:tied")
    x = torch.randn(2, 4)
    assert torch.equal(loaded.run({"input": x})["output_0"], module(x))


@pytest.mark.parametrize(
    ("factory", "tensors", "words"),
    [
        ("net:make", {"weight": (3, 4)}, "lacks bias"),
        ("net:make", {"weight": (3, 4), "bias": (3,), "more": (1,)}, "has more, which it does not know"),
        ("net:make", {"weight": (4, 3), "bias": (3,)}, r"has weight as \(4, 3\), not \(3, 4\)"),
        ("net:number", {}, "returns a int"),
        ("net:broken", {}, "raised RuntimeError: no luck"),
        ("net:none", {}, "has no function 'none'"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, factory: str, tensors: dict[str, tuple[int, ...]], words: str
) -> None:
    (tmp_path / "net.py").write_text(CODE)
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "w")
    with pytest.raises(ModelError, match=words) as caught:
        load("factory", {"code": tmp_path / "net.py", "weights": tmp_path / "w"}, factory)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"no")
    forms: tuple[Format, ...] = ("torchscript", "exported")
    for form in forms:
        with pytest.raises(ModelError, match="damaged, or of another torch"):
            load(form, {"model": tmp_path / "w"})


def test_an_example_has_the_batch_first() -> None:
    assert example(TensorInfo("x", "int64", (None, 3, None)), 5).shape == (5, 3, 8)
    assert example(TensorInfo("x", "float32", (2, 3)), 5).shape == (2, 3)
