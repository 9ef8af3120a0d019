"""Files of ``torch.export`` and of TorchScript, looked at before torch loads them: nothing in them may run anything but the
operations of a model, and none of these may read or write files.

torch's own loader of exported programs trusts a file. It unpickles what lies beside the graph; it hands the texts of sizes to
``sympify`` and those of guards to ``exec``, which both evaluate Python; it calls whatever an operation names below the module
``torch``; it writes the graph's names into the source of a function; and it links libraries that were compiled beforehand. So
every record must be one that a graph needs, every text in the graph must have the form that torch itself gives it there, and
while torch loads it, it may unpickle tensors alone. What is refused is an ``UnsafeModelError`` with one line.
"""

import ast
import contextlib
import json
import os
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch


class UnsafeModelError(Exception):
    """The file asks for more than a model's operations. The text is one line."""


_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+|extra/.*|extra_files/.*"
    r"|models/[\w.-]+\.json|data/sample_inputs/[\w.-]+\.pt"
    r"|data/weights/(weight_\d+|[\w.-]+_weights_config\.json|[\w.-]+\.pt)"
    r"|data/constants/(tensor_\d+|[\w.-]+_constants_config\.json|[\w.-]+\.pt)"
    r"|serialized_(exported_program\.json|state_dict\.(pt|json)|constants\.(pt|json)|example_inputs\.pt)"
)
"""What a program is made of, in the form of today and in that of torch 2.7: no libraries, no pickled objects."""
_GRAPHS = re.compile(r"models/[\w.-]+\.json|data/\w+/[\w.-]+_config\.json|serialized_exported_program\.json")
_OPERATOR = (
    "add sub mul floordiv truediv mod pow neg pos abs eq ne lt le gt ge and_ or_ xor not_ invert lshift rshift getitem"
)
_FUNCTORCH = """
    _add_batch_dim _remove_batch_dim _vmap_increment_nesting _vmap_decrement_nesting lazy_load_decompositions _make_dual
    _unpack_dual _jvp_increment_nesting _jvp_decrement_nesting _unwrap_for_grad _enter_dual_level _exit_dual_level
"""
_FILES = r"(\w+_)?(file|save|load|read|write|library)(_\w+)?"
"""Operations with such a name are given paths."""
_TARGETS = re.compile(
    rf"torch\.ops\.(?!higher_order\.|{_FILES}\.|loaded_|import_)_?[a-z]\w*\.(?!{_FILES}\.|__call__\b)\w+\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.[a-z]\w*|torch\.(_)?sym_\w+"
    r"|torch\._C\._set_grad_enabled|torch\.amp\.autocast_mode\._(enter|exit)_autocast|math\.[a-z0-9]+"
    r"|torch\.fx\.experimental\.symbolic_shapes\.cast_symbool_to_symint_guardless"
    rf"|torch\._functorch\.predispatch\.({'|'.join(_FUNCTORCH.split())})|_operator\.({'|'.join(_OPERATOR.split())})"
)
"""What an operation may name."""
_WORD = re.compile(r"[\w.\-/ :+]*")
"""A text that is no code wherever it is evaluated."""
_NAME = re.compile(r"[\w.\-/ :+@,<>=|*%&~^?!$]*")
"""A name that runs nothing wherever it is written: without a call, a quote, and the end of a statement."""
_EXPRESSION = re.compile(r"[\w .,'()\[\]<>=!+\-*/%&|~^]*")
"""What is evaluated must mean the same to whoever reads it twice: in one line, and without escapes."""
_FREE = {"metadata", "torch_version", "as_string", "as_strings"}
"""Under these keys of an object stand texts that are kept, or given to an operation, as they are."""
_MAPS = {
    *("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values", "config"),
    *("as_string_to_argument", "opset_version", "range_constraints", "treespec_namedtuple_fields"),
}
"""Under these the keys are the file's own, and say nothing of what stands under them."""
_FUNCTIONS = """
    Symbol Integer Float Rational Add Mul Pow Max Min And Or Not Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan
    StrictGreaterThan GreaterThan Piecewise ExprCondPair Abs sign floor ceiling sqrt log exp Mod FloorDiv ModularIndexing Where
    PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv
    IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity BitwiseFn_bitwise_and
    BitwiseFn_bitwise_or BooleanTrue BooleanFalse int len max min abs round float bool cast_symbool_to_symint_guardless
"""
_SYMBOLIC = frozenset(_FUNCTIONS.split())
"""What a text of sizes, or of a guard, may call."""
_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel", "item"})
_PLAIN = (
    *(
        ast.Expression,
        ast.Constant,
        ast.Name,
        ast.Load,
        ast.BinOp,
        ast.UnaryOp,
        ast.BoolOp,
        ast.Compare,
        ast.IfExp,
        ast.Tuple,
    ),
    *(ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_NESTED = 64
_lock = threading.Lock()


def check(path: Path) -> None:
    """Raises ``UnsafeModelError``; what torch raises for a damaged archive."""
    views = [_by_torch(path), _by_python(path)]  # torch reads a file with both, which need not see the same
    for view in views:
        for name, read in view.items():
            if _RECORDS.fullmatch(name) is None:
                raise UnsafeModelError(
                    f"it holds {name[:80]!r}, which no program needs: compiled code and pickled objects are not run"
                )
            if _GRAPHS.fullmatch(name) is not None:
                _check_graph(_json(read(), name))


def _by_torch(path: Path) -> dict[str, Callable[[], bytes]]:
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        return {name: partial(reader.get_record, name) for name in reader.get_all_records()}
    except RuntimeError:
        return {}


def _by_python(path: Path) -> dict[str, Callable[[], bytes]]:
    """Without the folder that all lies in, which torch leaves out too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return {}
    top = {name.partition("/")[0] for name in names if "/" in name}
    inside = len(top) == 1 and not any("/" not in name for name in names)

    named = {name.partition("/")[2] if inside else name: name for name in names if not name.endswith("/")}
    return {short: partial(_read, path, name) for short, name in named.items()}


def _read(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"its {name} is no JSON") from error


def _check_graph(value: Any, key: str = "", depth: int = 0) -> None:
    if depth > _NESTED:
        raise UnsafeModelError("its graph is nested too deeply")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name, "")
            if key in _MAPS:
                _check_graph(inner, "", depth + 1)
                continue
            if name == "use_pickle" and inner is not False:
                raise UnsafeModelError("it holds pickled tensors, which are not unpickled")
            if name not in _FREE or not _is_text(inner):
                _check_graph(inner, name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_graph(inner, key, depth + 1)
    elif isinstance(value, str):
        _check_text(value, key)


def _is_text(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _check_text(text: str, key: str) -> None:
    match key:
        case "target" | "as_operator":
            is_fine, what = _TARGETS.fullmatch(text) is not None, "is no operation of a model"
        case "expr_str" | "guards_code":
            is_fine, what = _is_expression(text), "is no size of a model"
        case "in_spec" | "out_spec":
            is_fine, what = (
                _is_spec(text),
                "does not say how arguments are nested, in names without quotes and brackets",
            )
        case _:
            is_fine, what = _NAME.fullmatch(text) is not None, "is no name: it has a quote, a bracket or the like"
    if not is_fine:
        raise UnsafeModelError(f"{text[:80]!r} in its graph {what}, and torch might run it")


def _is_expression(text: str) -> bool:
    """Arithmetic and comparisons of sizes, with functions that are known; nothing by which anything else can be reached."""
    if _EXPRESSION.fullmatch(text) is None:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_fine(node) for node in ast.walk(tree))


def _is_fine(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return not isinstance(value, str | bytes) or (isinstance(value, str) and _WORD.fullmatch(value) is not None)
        case ast.Name(name):
            return not name.startswith("_")
        case ast.Call(ast.Name(name)):
            return name in _SYMBOLIC
        case ast.Call(ast.Attribute(ast.Name("math"), name)):
            return not name.startswith("_")
        case ast.Call(ast.Attribute(ast.Name("torch"), name)):
            return name.startswith("sym_")
        case ast.Call(ast.Attribute(_, name)):
            return name in _METHODS
        case ast.Attribute(ast.Name("math" | "torch"), name):
            return not name.startswith("_")  # a call of it is looked at by itself
        case ast.Attribute(_, name):
            return name in _METHODS
        case ast.Subscript(_, index):
            return isinstance(index, ast.Constant | ast.UnaryOp)
    return isinstance(node, _PLAIN)


def _is_spec(text: str) -> bool:
    """How arguments are nested: JSON, in which names lie in JSON of their own."""
    try:
        return _is_nested(json.loads(text), 0) if text else True
    except (ValueError, RecursionError):
        return False


def _is_nested(value: Any, depth: int) -> bool:
    if depth > _NESTED:
        return False
    if isinstance(value, dict):
        names = all(_NAME.fullmatch(name) and name != "__enum__" for name in value)
        return names and all(_is_nested(inner, depth + 1) for inner in value.values())
    if isinstance(value, list):
        return all(_is_nested(inner, depth + 1) for inner in value)
    if isinstance(value, str) and value[:1] in {"[", "{", '"'}:
        return _is_nested(json.loads(value), depth + 1)
    return not isinstance(value, str) or _NAME.fullmatch(value) is not None


_TOKENS = re.compile(
    r"""#[^\n]*|(?P<text>"{3}(?:\\.|[^\\])*?"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<word>\w+)""",
    re.DOTALL,
)
_PATHS = {"save", "from_file", "read_file", "write_file"}
"""Operations of scripts that read or write files: torch's, and torchvision's."""


def check_script(path: Path) -> None:
    """The same for a file of TorchScript, which is a language of its own and can do little else. Raises ``UnsafeModelError``."""
    for view in (_by_torch(path), _by_python(path)):
        if "model.json" in view:
            raise UnsafeModelError("it is of a torch before 1.4: load it with that and save it with torch.export.save")
        for name, read in view.items():
            if name.endswith(".py") and (found := _paths_of(read())):
                raise UnsafeModelError(f"its code names {found!r}, which reads or writes files")


def _paths_of(code: bytes) -> str:
    for token in _TOKENS.finditer(code.decode(errors="replace")):
        found = token["word"]
        if token["text"] is not None:  # getattr(torch, "save")
            try:
                found = ast.literal_eval(token["text"])
            except (SyntaxError, ValueError):
                continue
        if found in _PATHS:
            return found
    return ""


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Whatever ``torch.load`` and the loader of archives unpickle in this process meanwhile is made of tensors and plain values.
    Raises ``UnsafeModelError`` where it is not."""
    with _lock, contextlib.ExitStack() as undo:
        before = os.environ.get(_FORCED)
        os.environ[_FORCED] = "1"
        undo.callback(_put_back, before)
        package = getattr(getattr(torch.export, "pt2_archive", None), "_package", None)
        for owner, name, instead in (
            (torch._C, "_pickle_load_obj", _refuse),
            (package, "pickle", SimpleNamespace(loads=_refuse)),
        ):
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, instead)
        try:
            yield
        except pickle.UnpicklingError:
            _refuse()


_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch reads it in each call of ``torch.load``, and it wins over what the call says."""


def _put_back(before: str | None) -> None:
    if before is None:
        os.environ.pop(_FORCED, None)
    else:
        os.environ[_FORCED] = before


def _refuse(*_: object, **__: object) -> NoReturn:
    raise UnsafeModelError("it holds a pickled object, which is not unpickled")
