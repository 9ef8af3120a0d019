"""No file of a model runs anything but the model's operations: what would is refused in one line before torch sees it."""

import contextlib
import io
import json
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dmi_tensor import archives
from dmi_tensor.models import ModelError, load, program_of

pytestmark = pytest.mark.filterwarnings("ignore")

Edit = Callable[[dict[str, bytes], Path], None]


class Net(nn.Module):
    """With a weight, a buffer, a constant, sizes that are computed, and a guard."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("ones", torch.ones(2))
        self.constant = torch.arange(2)

    def forward(self, x: torch.Tensor) -> Any:
        rows = x.shape[0]
        beside = self.constant.sum() + self.get_buffer("ones").sum()
        return self.linear(x).reshape(rows * 2)[: (rows + 1) // 2] + beside


class Writes:
    """Harmless: whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def exported() -> bytes:
    """A good file."""
    free = {0: torch.export.Dim.AUTO}
    program = torch.export.export(Net().eval(), (torch.ones(3, 4),), dynamic_shapes=(free,))
    written = io.BytesIO()
    torch.export.save(program, written)
    return written.getvalue()


@pytest.fixture(scope="module")
def good() -> bytes:
    return exported()


def records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(found: dict[str, bytes], top: str = "a/") -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, body in found.items():
            archive.writestr(top + name, body)
    return written.getvalue()


def pickled(value: Any) -> bytes:
    written = io.BytesIO()
    torch.save(value, written)
    return written.getvalue()


def graph(found: dict[str, bytes], edit: Callable[[Any], None]) -> None:
    value = json.loads(found["models/model.json"])
    edit(value)
    found["models/model.json"] = json.dumps(value).encode()


def texts(value: Any, wanted: str) -> Iterator[dict[str, Any]]:
    """Every object in a graph that has such a key."""
    if isinstance(value, dict):
        if wanted in value:
            yield value
        for inner in value.values():
            yield from texts(inner, wanted)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, wanted)


def shell(sign: Path) -> str:
    return f"__import__('pathlib').Path('{sign}').touch()"


def sample_inputs(found: dict[str, bytes], sign: Path) -> None:
    found["data/sample_inputs/model.pt"] = pickled(((torch.ones(3, 4),), {"x": Writes(sign)}))


def bare_pickle(found: dict[str, bytes], sign: Path) -> None:
    found["data/sample_inputs/model.pt"] = pickle.dumps(Writes(sign))


def weights(found: dict[str, bytes], sign: Path) -> None:
    found["data/weights/model.pt"] = pickled({"linear.weight": Writes(sign)})


def pickled_weight(found: dict[str, bytes], sign: Path) -> None:
    config = json.loads(found["data/weights/model_weights_config.json"])
    config["config"]["linear.bias"]["use_pickle"] = True
    found["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    found["data/weights/weight_1"] = pickled(Writes(sign))


def opaque_constant(found: dict[str, bytes], sign: Path) -> None:
    kind = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    found["data/constants/model_constants_config.json"] = json.dumps({"config": {"odd": kind}}).encode()
    found["data/constants/opaque_obj_0"] = pickle.dumps(Writes(sign))


def opaque_constant_elsewhere(found: dict[str, bytes], sign: Path) -> None:
    """Under a name that a weight may have."""
    path = "opaque_obj_/../../weights/weight_9"
    kind = {"path_name": path, "is_param": False, "use_pickle": False, "tensor_meta": None}
    found["data/constants/model_constants_config.json"] = json.dumps({"config": {"odd": kind}}).encode()
    found[f"data/constants/{path}"] = found["data/weights/weight_9"] = pickle.dumps(Writes(sign))


def library(found: dict[str, bytes], sign: Path) -> None:
    found["data/aotinductor/model/model.so"] = b"\x7fELF"


def size(found: dict[str, bytes], sign: Path) -> None:
    graph(found, lambda value: next(texts(value, "expr_str")).update(expr_str=shell(sign)))


def size_by_attribute(found: dict[str, bytes], sign: Path) -> None:
    text = f"Symbol('s0').__class__.__init__.__globals__['sys'].modules['os'].system('touch {sign}')"
    graph(found, lambda value: next(texts(value, "expr_str")).update(expr_str=text))


def size_by_function(found: dict[str, bytes], sign: Path) -> None:
    graph(found, lambda value: next(texts(value, "expr_str")).update(expr_str=f"preview({shell(sign)!r})"))


def guard(found: dict[str, bytes], sign: Path) -> None:
    graph(found, lambda value: value.update(guards_code=[f"{shell(sign)} is None"]))


def guard_by_torch(found: dict[str, bytes], sign: Path) -> None:
    graph(found, lambda value: value.update(guards_code=[f"torch.os.system('touch {sign}') == 0"]))


def guard_by_message(found: dict[str, bytes], sign: Path) -> None:
    text = f"""L['x'].size()[0] != 'a" + str({shell(sign)}) + "'"""
    graph(found, lambda value: value.update(guards_code=[text]))


def size_under_a_free_name(found: dict[str, bytes], sign: Path) -> None:
    """A tensor is called ``metadata``."""
    found["models/model.json"] = found["models/model.json"].replace(b'"x"', b'"metadata"')

    def edit(value: Any) -> None:
        meta = value["graph_module"]["graph"]["tensor_values"]["metadata"]
        meta["sizes"][0] = {"as_expr": {"expr_str": shell(sign), "hint": None}}

    graph(found, edit)


def size_as_metadata(found: dict[str, bytes], sign: Path) -> None:
    """What is free must be text."""

    def edit(value: Any) -> None:
        values = value["graph_module"]["graph"]["tensor_values"]
        odd = {"as_expr": {"expr_str": shell(sign), "hint": None}}
        value["graph_module"]["metadata"] = {"graph": {"tensor_values": {**values, "odd": {"sizes": [odd]}}}}

    graph(found, edit)


def guard_by_escapes(found: dict[str, bytes], sign: Path) -> None:
    """torch leaves out what ends the lines, and reads it again."""
    hidden = "".join("\\\n" + f"x{ord(each):02x}" for each in f"+str({shell(sign)})+".replace("'", '"'))
    hidden = hidden.replace("x22", "x27")
    graph(found, lambda value: value.update(guards_code=[f"1 == 1 or '{hidden}'"]))


def operation_given_to_another(found: dict[str, bytes], sign: Path) -> None:
    """Written as an argument."""

    def edit(value: Any) -> None:
        inner = value["graph_module"]["graph"]
        arguments = [
            {"as_operator": "torch.ops.aten.from_file.default"},
            {"as_string": str(sign)},
            {"as_bool": True},
            {"as_int": 3},
        ]
        inputs = [{"name": "", "arg": each, "kind": 1} for each in arguments]
        node = {"target": "torch.ops.higher_order.wrap", "inputs": inputs, "outputs": [{"as_tensor": {"name": "w"}}]}
        inner["nodes"].insert(0, {**node, "metadata": {}, "is_hop_single_tensor_return": True, "name": "w"})
        inner["tensor_values"]["w"] = inner["tensor_values"]["x"]

    graph(found, edit)


def operation_under_a_free_name(found: dict[str, bytes], sign: Path) -> None:
    """In a dict of arguments, where names are the file's own."""
    odd = {"as_string_to_argument": {"metadata": {"as_operator": "torch.ops.aten.from_file.default"}}}

    def edit(value: Any) -> None:
        value["graph_module"]["graph"]["nodes"][-1]["inputs"].append({"name": "", "arg": odd, "kind": 1})

    graph(found, edit)


def operation(found: dict[str, bytes], sign: Path) -> None:
    def edit(value: Any) -> None:
        node = value["graph_module"]["graph"]["nodes"][-1]
        node["target"] = "torch.os.system"
        node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {sign}"}, "kind": 1}]

    graph(found, edit)


def operation_on_files(found: dict[str, bytes], sign: Path) -> None:
    def edit(value: Any) -> None:
        node = value["graph_module"]["graph"]["nodes"][-1]
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [
            {"name": "filename", "arg": {"as_string": str(sign)}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 2},
            {"name": "size", "arg": {"as_int": 4}, "kind": 2},
        ]

    graph(found, edit)


def library_of_operations(found: dict[str, bytes], sign: Path) -> None:
    graph(found, lambda value: next(texts(value, "target")).update(target="torch.ops.load_library"))


def argument(found: dict[str, bytes], sign: Path) -> None:
    odd = f"x={shell(sign)}"
    found["models/model.json"] = found["models/model.json"].replace(b'"x"', json.dumps(odd).encode())


def nesting(found: dict[str, bytes], sign: Path) -> None:
    odd = json.dumps([1, {"__enum__": True, "fqn": "antigravity:x", "name": "x"}])

    def edit(value: Any) -> None:
        for each in texts(value, "in_spec"):
            each["in_spec"] = odd

    graph(found, edit)


def of_before(found: dict[str, bytes], sign: Path) -> None:
    """The form of torch 2.7."""
    model, inputs = found["models/model.json"], pickled(((torch.ones(3, 4),), {"x": Writes(sign)}))
    found.clear()
    found.update({"version": b"8.20", "serialized_exported_program.json": model})
    found.update({f"serialized_{name}.pt": inputs for name in ("state_dict", "constants", "example_inputs")})


EVIL: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        sample_inputs,
        bare_pickle,
        weights,
        pickled_weight,
        opaque_constant,
        opaque_constant_elsewhere,
        library,
        size,
        size_by_attribute,
        size_by_function,
        guard,
        guard_by_torch,
        guard_by_message,
        guard_by_escapes,
        size_under_a_free_name,
        size_as_metadata,
        operation,
        operation_given_to_another,
        operation_under_a_free_name,
        operation_on_files,
        library_of_operations,
        argument,
        nesting,
        of_before,
    )
}


def evil(good: bytes, name: str, sign: Path) -> bytes:
    """A file that makes one at ``sign`` if anything of it is run."""
    found = records(good)
    EVIL[name](found, sign)
    return packed(found, "" if name == "of_before" else "a/")


@pytest.mark.parametrize("name", EVIL)
def test_a_file_that_would_run_something_is_refused(good: bytes, tmp_path: Path, name: str) -> None:
    path, sign = tmp_path / "odd.pt2", tmp_path / "sign"
    path.write_bytes(evil(good, name, sign))
    with pytest.raises(ModelError) as caught:
        load("exported", {"model": path}).run({"x": torch.ones(3, 4)})
    assert not sign.exists()
    assert "antigravity" not in sys.modules
    assert len(str(caught.value).splitlines()) == 1
    assert "refused" in str(caught.value)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ, "and others load as before"


def test_most_of_them_run_where_nobody_looks(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that this is no test of torch alone."""
    ran = []
    for name in EVIL:
        sign = tmp_path / name
        (tmp_path / "odd.pt2").write_bytes(evil(good, name, sign))
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setattr(archives, "check", lambda _: None)
            patch.setattr(archives, "tensors_only", torch.no_grad)
            with contextlib.suppress(Exception):  # whatever torch makes of it
                load("exported", {"model": tmp_path / "odd.pt2"}).run({"x": torch.ones(3, 4)})
        if sign.exists():
            ran.append(name)
    assert {"sample_inputs", "pickled_weight", "opaque_constant", "size", "guard", "argument"} <= set(ran), ran
    assert {"guard_by_escapes", "size_under_a_free_name", "operation_given_to_another"} <= set(ran), ran


def test_two_readers_that_see_two_files_are_both_asked(good: bytes, tmp_path: Path) -> None:
    """A second directory at the end of a zip shows Python what torch does not see."""
    path, sign = tmp_path / "odd.pt2", tmp_path / "sign"
    found = records(good)
    size(found, sign)
    for first, second in ((good, packed(found)), (packed(found), good)):
        path.write_bytes(first + second)
        with contextlib.suppress(ModelError):
            load("exported", {"model": path}).run({"x": torch.ones(3, 4)})
        assert not sign.exists()


@pytest.mark.parametrize("compressed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_good_file_is_what_it_was(good: bytes, tmp_path: Path, compressed: int) -> None:
    path = tmp_path / "good.pt2"
    path.write_bytes(good)
    loaded, x = load("exported", {"model": path}), torch.randn(5, 4)
    wanted = program_of(path).module()(x)
    assert torch.equal(loaded.run({"x": x})["output_0"], wanted)


class Branches(nn.Module):
    """Control flow, autocast, attention, an integer that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.names = nn.ParameterDict(
            {"layer one": nn.Parameter(torch.ones(8)), "<pad>, 50%": nn.Parameter(torch.ones(8))}
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            y = self.attention(x, x, x, need_weights=False)[0]
        z = torch.cond(y.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (y,))
        with torch.autocast("cpu", torch.bfloat16):
            z = z @ z.transpose(1, 2)
        each = torch.vmap(lambda row: row * row.sum())(y)
        return {"y": y * self.names["layer one"] + self.names["<pad>, 50%"], "z@1": z.float().softmax(-1), "v": each}


def test_what_models_do_is_let_through(tmp_path: Path) -> None:
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(Branches().eval(), (torch.randn(2, 4, 8),), dynamic_shapes=(free,))
    path, x = tmp_path / "branches.pt2", torch.randn(3, 5, 8)
    torch.export.save(program, path)
    found = load("exported", {"model": path}).run({"x": x})
    wanted = program.module()(x)
    assert {name: torch.equal(found[name], wanted[name]) for name in wanted} == {"y": True, "z@1": True, "v": True}


def test_a_script_with_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    torch.jit.script(nn.Linear(4, 2)).save(tmp_path / "a.pt")
    found = records((tmp_path / "a.pt").read_bytes())
    for name in ("data.pkl", "constants.pkl"):
        (tmp_path / "odd.pt").write_bytes(packed(found | {name: pickle.dumps(Writes(sign), 2)}))
        with pytest.raises(ModelError):
            load("torchscript", {"model": tmp_path / "odd.pt"})
    assert not sign.exists()


class Saves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "sign")
        return x


class Reads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("sign", shared=True, size=4)


def hidden(code: bytes) -> bytes:
    """The same script in other words."""
    return code.replace(b"torch.save(", b'getattr(torch, "s\\x61ve")(').replace(
        b"torch.from_file(", b'(torch # "\n .from_file)( '
    )


@pytest.mark.parametrize("is_hidden", [False, True])
@pytest.mark.parametrize("kind", [Saves, Reads])
def test_a_script_that_reads_or_writes_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], is_hidden: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(kind().eval()).save("a.pt")
    found = records(Path("a.pt").read_bytes())
    if is_hidden:
        found = {name: hidden(body) if name.endswith(".py") else body for name, body in found.items()}
        Path("a.pt").write_bytes(packed(found))
    with pytest.raises(ModelError, match="is refused: its code names"):
        load("torchscript", {"model": Path("a.pt")}).run({"x": torch.ones(4)})
    assert not Path("sign").exists()


class Speaks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 1e9:
            raise ValueError("save less # 'here'")
        return x + 1


def test_a_script_may_speak_of_files(tmp_path: Path) -> None:
    torch.jit.script(Speaks().eval()).save(tmp_path / "a.pt")
    found = load("torchscript", {"model": tmp_path / "a.pt"}).run({"x": torch.ones(4)})
    assert torch.equal(found["output_0"], torch.full((4,), 2.0))


def test_weights_that_are_a_pickle_are_no_weights(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(): return nn.Linear(4, 2)\n")
    for data in (pickled({"weight": Writes(sign)}), pickle.dumps(Writes(sign))):
        (tmp_path / "w.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match="no whole safetensors file"):
            load("factory", {"code": tmp_path / "net.py", "weights": tmp_path / "w.safetensors"}, "net:make")
    assert not sign.exists()
