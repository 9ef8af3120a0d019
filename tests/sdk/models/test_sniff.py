"""What is no model is told apart, and nothing of it is executed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dmi.errors import UsageError
from dmi.models.sniff import form_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

_MODULE = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))


class Trap:
    """Whoever unpickles it removes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.unlink, (str(self.path),)


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        form_of(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line


def test_a_script_and_an_exported_program_are_models(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.bin")
    assert form_of(tmp_path / "a.bin") == "torchscript"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "b.pt2")
    assert form_of(tmp_path / "b.pt2") == "exported"


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_alone_need_their_function(tmp_path: Path, zipped: bool) -> None:
    torch.save(_MODULE.state_dict(), tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    line = refusal(tmp_path / "state.pt")
    assert "only weights (a state dict)" in line
    assert "net.py:make --weights weights.safetensors" in line
    torch.save(dict(_MODULE.state_dict()), tmp_path / "plain.pt", _use_new_zipfile_serialization=zipped)
    assert "only weights" in refusal(tmp_path / "plain.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_our_own_export_is_told_how_to_come_in(tmp_path: Path, zipped: bool) -> None:
    both = {"model_state_dict": _MODULE.state_dict(), "optimizer_state_dict": {"state": {}, "param_groups": []}}
    torch.save(both, tmp_path / "export.pt", _use_new_zipfile_serialization=zipped)
    assert "models add NAME --job JOB --model net.py:make" in refusal(tmp_path / "export.pt")


def test_a_pickled_module_is_code_and_a_checkpoint_no_model(tmp_path: Path) -> None:
    torch.save(_MODULE, tmp_path / "module.pt")
    assert "a pickled Sequential, which is code and is not executed" in refusal(tmp_path / "module.pt")
    torch.save({"epoch": 3, "model": _MODULE.state_dict()}, tmp_path / "checkpoint.pt")
    assert "training checkpoint" in refusal(tmp_path / "checkpoint.pt")


def test_no_pickle_is_executed_to_find_out(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    witness.touch()
    for zipped in (True, False):
        torch.save({"a": Trap(witness)}, tmp_path / "trap.pt", _use_new_zipfile_serialization=zipped)
        refusal(tmp_path / "trap.pt")
    assert witness.exists()


def test_what_is_cut_empty_text_or_something_else_says_so(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    (tmp_path / "folder").mkdir()
    for name, content, words in (
        ("cut.pt", data[: len(data) // 2], "cut short or damaged"),
        ("empty.pt", b"", "is empty"),
        ("text.txt", b"hello", "is text"),
        ("net.py", b"def make(): ...", "net.py:make"),
        ("noise.pt", bytes(range(256)), "no model that torch writes"),
        ("zip.pt", b"PK\x03\x04" + bytes(40), "cut short or damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in refusal(tmp_path / name)
    assert "--weights w.safetensors" in refusal(tmp_path / "w.safetensors")
    assert "folder" in refusal(tmp_path / "folder")
    assert "No such file" in refusal(tmp_path / "missing.pt")


def test_any_bytes_give_a_form_or_a_line(tmp_path: Path) -> None:
    torch.save(_MODULE.state_dict(), tmp_path / "state.pt")
    data = (tmp_path / "state.pt").read_bytes()
    for place in range(0, len(data), 37):
        (tmp_path / "odd.pt").write_bytes(data[:place] + b"\xff\x80\x00" + data[place + 3 :])
        refusal(tmp_path / "odd.pt")
