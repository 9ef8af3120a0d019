"""A batch is a pure function of its inputs: a bad one keeps its place, and its neighbours their bits."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmi.errors import UsageError
from dmi.infer import config
from dmi.infer.batches import Batches, InputsChangedError
from dmi.infer.readers import listing_of, read
from dmi_protocol.model import ModelContent, TensorInfo
from dmi_tensor.in_turn import StagesInTurn
from dmi_tensor.models import Loaded

torch.manual_seed(0)
LINEAR = nn.Linear(4, 3)
X = TensorInfo("x", "float32", (None, 4))
Y = TensorInfo("output_0", "float32", (None, 3))


def batches(
    folder: Path,
    lines: Sequence[str],
    module: Any = LINEAR,
    inputs: tuple[TensorInfo, ...] = (X,),
    outputs: tuple[TensorInfo, ...] = (Y,),
    **more: Any,
) -> list[dict[str, Any]]:
    """The rows of these lines of JSON."""
    (folder / "x.jsonl").write_text("\n".join(lines))
    found = config.of(
        {"model": "m", "input": {"kind": "jsonl", "path": str(folder / "x.jsonl")}, "batch_size": 3, **more}
    )
    listing = listing_of(found)
    made = Batches(
        found,
        partial(read, found, listing),
        ModelContent("exported", (), inputs, outputs),
        Loaded(module, [i.name for i in inputs]),
    )
    return [row for rows in made.compute(0, listing.total) for row in rows]


def scores(*rows: Sequence[float]) -> Tensor:
    with torch.inference_mode():
        return torch.softmax(LINEAR(torch.tensor(rows)), 1)


LINES = ["[1, 2, 3, 4]", "[5, 6, 7, 8]", "[9, 1, 2, 3]", "[4, 5, 6, 7]"]


def test_a_row_has_the_best_class_and_its_probability(tmp_path: Path) -> None:
    found = batches(tmp_path, LINES)
    first = scores([1.0, 2, 3, 4], [5.0, 6, 7, 8], [9.0, 1, 2, 3])
    assert [row["id"] for row in found] == [1, 2, 3, 4]
    assert [row["category"] for row in found[:3]] == first.argmax(1).tolist()
    assert [row["score"] for row in found[:3]] == first.max(1).values.tolist()
    last = scores([4.0, 5, 6, 7])
    assert (found[3]["category"], found[3]["score"]) == (last.argmax().item(), last.max().item())


def test_a_bad_input_keeps_its_place_and_its_neighbours_their_bits(tmp_path: Path) -> None:
    good = batches(tmp_path, LINES)
    found = batches(tmp_path, [LINES[0], "[1, 2]", LINES[2], "no"])
    assert (found[0], found[2]) == (good[0], good[2])
    assert found[1] == {"id": 2, "error": "its shape is (2,) and the model takes (4,)"}
    assert str(found[3]["error"]).startswith("not JSON")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('"text"', "not made of numbers"),
        ("[[1], [1, 2]]", "its rows differ in length"),
        ("{}", "no columns of numbers"),
        ("[null, 1, 2, 3]", "not made of numbers"),
        ('{"a": 1, "b": "text"}', "column 'b': it is not made of numbers"),
        ('{"x": [1, 2]}', "its shape is"),
    ],
)
def test_what_a_model_cannot_take_is_told(tmp_path: Path, line: str, words: str) -> None:
    [row] = batches(tmp_path, [line])
    assert words in row["error"]


def test_columns_are_inputs_by_name_or_one_after_another(tmp_path: Path) -> None:
    named = batches(tmp_path, ['{"x": [1, 2, 3, 4]}'])
    in_order = batches(tmp_path, ['{"a": 1, "b": [2, 3], "c": 4}'])
    assert named == in_order == batches(tmp_path, LINES[:1])


def test_labels_more_classes_and_all_outputs(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("cat\ndog\nbird\n")
    [best] = batches(tmp_path, LINES[:1], output={"labels": str(tmp_path / "labels")})
    [two] = batches(tmp_path, LINES[:1], output={"labels": str(tmp_path / "labels"), "top": 2})
    assert best["category"] in {"cat", "dog", "bird"}
    assert two["top"][0] == {"category": best["category"], "score": best["score"]}
    assert two["top"][0]["score"] >= two["top"][1]["score"]
    [plain] = batches(tmp_path, LINES[:1], output={"top": 0})
    assert plain == {"id": 1, "outputs": {"output_0": LINEAR(torch.tensor([[1.0, 2, 3, 4]]))[0].tolist()}}


def test_a_model_of_several_outputs_gives_them_by_name(tmp_path: Path) -> None:
    def several(x: Tensor) -> dict[str, Any]:
        return {"sum": x.sum(1), "n": x.long()[:, 0], "h": x.bfloat16()[:, :1], "all": x.sum()}

    infos = (
        TensorInfo("sum", "float32", (None,)),
        TensorInfo("n", "int64", (None,)),
        TensorInfo("h", "bfloat16", (None, 1)),
        TensorInfo("all", "float32", (), is_batched=False),
    )
    [row] = batches(tmp_path, LINES[:1], several, outputs=infos)
    assert row == {"id": 1, "outputs": {"sum": 10.0, "n": 1, "h": [1.0]}}
    with pytest.raises(UsageError, match=r"output\.top needs a model with one output of scores"):
        batches(tmp_path, LINES[:1], several, outputs=infos, output={"top": 1})


def test_numbers_that_json_cannot_say_are_an_error(tmp_path: Path) -> None:
    def odd(x: Tensor) -> Tensor:
        return x / 0

    assert batches(tmp_path, LINES[:1], odd)[0]["error"] == "the model's scores are not finite"
    assert "not finite, which JSON cannot say" in batches(tmp_path, LINES[:1], odd, output={"top": 0})[0]["error"]


def test_a_batch_of_one_size_is_filled_up(tmp_path: Path) -> None:
    seen = []

    def fixed(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x[:, :3]

    fixed_x = TensorInfo("x", "float32", (3, 4))
    found = batches(tmp_path, LINES, fixed, (fixed_x,))
    assert (seen, len(found)) == ([3, 3], 4)


def test_a_program_that_takes_no_batch_of_one_is_given_two(tmp_path: Path) -> None:
    def two(x: Tensor) -> Tensor:
        if len(x) == 1:
            raise RuntimeError("expected 2 <= size")
        return x[:, :3]

    assert len(batches(tmp_path, LINES, two)) == 4


CODE = """
import torch
def prepare(value):
    if value[0] == 5:
        raise ValueError("five is bad")
    return torch.tensor(value, dtype=torch.float64) * 2
def finish(output):
    return {"best": int(output.argmax())}
def broken(output):
    return {"x": float("nan")}
"""


def test_functions_of_the_user_make_inputs_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    found = batches(tmp_path, LINES[:2], preprocess="own.py:prepare", postprocess="own.py:finish")
    assert found == [
        {"id": 1, "best": scores([2.0, 4, 6, 8]).argmax().item()},
        {"id": 2, "error": "preprocess raised ValueError: five is bad"},
    ]
    [broken] = batches(tmp_path, LINES[:1], postprocess="own.py:broken")
    assert broken["error"].startswith("postprocess raised ValueError")
    with pytest.raises(UsageError, match="has no function 'none'"):
        batches(tmp_path, LINES[:1], preprocess="own.py:none")


def test_scale_mean_and_std_are_of_numbers_too(tmp_path: Path) -> None:
    found = batches(tmp_path, LINES[:1], preprocess={"scale": 0.5, "mean": [1.0], "std": [2.0]}, output={"top": 0})
    expected = LINEAR((torch.tensor([[1.0, 2, 3, 4]]) * 0.5 - 1) / 2)[0].tolist()
    assert found[0]["outputs"]["output_0"] == expected


def test_fractions_are_not_cut_for_a_model_of_integers(tmp_path: Path) -> None:
    tokens = TensorInfo("x", "int64", (None, 4))

    def embed(x: Tensor) -> Tensor:
        return x[:, :3].float()

    assert "has fractions" in batches(tmp_path, ["[1, 2, 3, 4.5]"], embed, (tokens,))[0]["error"]
    assert "category" in batches(tmp_path, ["[1, 2, 3, 4.0]"], embed, (tokens,))[0]


def test_an_array_of_doubles_is_what_the_model_takes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1.0, 2, 3, 4]]))
    found = config.of({"model": "m", "input": {"kind": "npy", "path": str(tmp_path / "x.npy")}})
    made = Batches(
        found, partial(read, found, listing_of(found)), ModelContent("exported", (), (X,), (Y,)), Loaded(LINEAR, ["x"])
    )
    [rows] = made.compute(0, 1)
    assert rows[0]["score"] == scores([1.0, 2, 3, 4]).max().item()


def test_an_input_for_which_the_model_raises_is_found_and_the_others_keep_their_bits(tmp_path: Path) -> None:
    def picky(x: Tensor) -> Tensor:
        if (x[:, 0] == 5).any():
            raise IndexError("index out of range\nin self")
        made: Tensor = LINEAR(x)
        return made

    found = batches(tmp_path, LINES, picky)
    good = batches(tmp_path, [LINES[0], "[0, 0, 0, 0]", *LINES[2:]])
    assert found[1] == {"id": 2, "error": "the model raised IndexError: in self"}
    assert [found[0], *found[2:]] == [good[0], *good[2:]]


def test_a_model_that_raises_for_several_together_fails_them_all(tmp_path: Path) -> None:
    def crowded(x: Tensor) -> Tensor:
        if (x[:, 0] != 0).sum() > 2:
            raise RuntimeError("too many")
        made: Tensor = LINEAR(x)
        return made

    found = batches(tmp_path, LINES, crowded)
    assert ["error" in row for row in found] == [True, True, True, False]


def test_a_model_that_always_raises_computes_nothing(tmp_path: Path) -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        batches(tmp_path, LINES, broken)


def test_a_model_that_takes_no_zeros_computes_what_is_good(tmp_path: Path) -> None:
    def no_zeros(x: Tensor) -> Tensor:
        if (x == 0).all(1).any():
            raise ZeroDivisionError("by nothing")
        made: Tensor = LINEAR(x)
        return made

    found = batches(tmp_path, [LINES[0], "no", "[0, 0, 0, 0]", LINES[3]], no_zeros)
    assert str(found[1]["error"]).startswith("not JSON")
    assert found[2] == {"id": 3, "error": "the model raised ZeroDivisionError: by nothing"}
    assert found[0] == batches(tmp_path, [LINES[0]] * 3)[0]


def test_inputs_that_are_gone_since_they_were_listed_are_missed(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n".join(LINES))
    found = config.of({"model": "m", "input": {"kind": "jsonl", "path": str(tmp_path / "x.jsonl")}, "batch_size": 3})
    listing = listing_of(found)
    (tmp_path / "x.jsonl").write_text("\n".join(LINES[:2]))
    made = Batches(
        found, partial(read, found, listing), ModelContent("exported", (), (X,), (Y,)), Loaded(LINEAR, ["x"])
    )
    with pytest.raises(InputsChangedError, match="has other inputs than when it was listed"):
        list(made.compute(0, 4))


def test_labels_are_as_many_as_classes_and_ids_are_the_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match="has 2 names, and the model 3 classes"):
        batches(tmp_path, LINES[:1], output={"labels": str(tmp_path / "labels")})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def finish(output):\n    return {'id': 7}\n")
    [row] = batches(tmp_path, LINES[:1], postprocess="own.py:finish")
    assert row["id"] == 1
    assert "it gives an 'id'" in row["error"]


@pytest.mark.parametrize("size", [1, 7, 8])
def test_the_bits_are_those_of_a_loop_with_the_same_batches(tmp_path: Path, size: int) -> None:
    """One sample alone and in a batch may differ in the last digits: so the batches are those of the inputs' order, whatever is
    wrong with some."""
    wide = nn.Linear(90, 40).double()
    info = TensorInfo("x", "float64", (None, 90)), TensorInfo("output_0", "float64", (None, 40))
    values = torch.randn((20, 90), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lines = [str(row) for row in values.tolist()]
    lines[3] = "[1]"
    more = {"batch_size": size, "output": {"top": 0}}
    found = batches(tmp_path, lines, wide, (info[0],), (info[1],), **more)
    values[3] = 0
    with torch.inference_mode():
        loop = [row for first in range(0, 20, size) for row in wide(values[first : first + size]).tolist()]
    assert [row["outputs"]["output_0"] for row in found if "error" not in row] == loop[:3] + loop[4:]


def test_a_function_of_the_user_may_get_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole.py").write_text(
        "import torch\n"
        "def centred(values):\n"
        "    rows = torch.tensor(values, dtype=torch.float32)\n"
        "    return rows - rows.mean(0)\n"
        "def few(values):\n"
        "    return values[1:]\n"
    )
    own: dict[str, Any] = {"preprocess": "whole.py:centred", "preprocess_batches": True, "output": {"top": 0}}
    found = batches(tmp_path, ["[1, 2, 3, 4]", "not JSON", "[3, 4, 5, 6]", "[9, 9, 9, 9]"], **own)
    with torch.inference_mode():
        expected = LINEAR(torch.tensor([[-1.0] * 4, [0.0] * 4, [1.0] * 4])).tolist()
        alone = LINEAR(torch.zeros(1, 4)).tolist()
    assert [row.get("outputs", {}).get("output_0") for row in found] == [expected[0], None, expected[2], alone[0]]
    ragged = batches(tmp_path, ["[1, 2, 3, 4]", "[1, 2]", "[3, 4, 5, 6]"], **own)
    assert ["error" in row for row in ragged] == [False, True, False], "the others are made, each alone"
    few = batches(tmp_path, ["[1, 2, 3, 4]"], **{**own, "preprocess": "whole.py:few"})
    assert few[0]["error"] == "preprocess gave 0 for 1 inputs"


class InTurn(StagesInTurn):
    """Stages that remember how many batches they were given at once."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.carried_bytes = 0

    def run_each(self, batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor] | Exception]:
        self.groups.append(len(batches))
        self.carried_bytes = 128 << 18
        with torch.inference_mode():
            return [{"output_0": LINEAR(batch["x"])} for batch in batches]


def test_stages_compute_as_many_batches_together_as_there_is_memory_for(tmp_path: Path) -> None:
    lines = [LINES[place % 4] for place in range(21)]
    wanted, stages = batches(tmp_path, lines), InTurn()
    found = config.of({"model": "m", "input": {"kind": "jsonl", "path": str(tmp_path / "x.jsonl")}, "batch_size": 3})
    listing = listing_of(found)
    made = Batches(found, partial(read, found, listing), ModelContent("exported", (), (X,), (Y,)), stages)
    made.warm_up()
    assert [row for rows in made.compute(0, listing.total) for row in rows] == wanted
    assert stages.groups == [1, 4, 2], "how large a batch is is not known before one was computed"
    stages.groups.clear()
    assert [row for rows in made.compute(0, listing.total, alone=True) for row in rows] == wanted
    assert stages.groups == [1] * 7
