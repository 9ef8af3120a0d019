"""What a model file is, from its bytes alone: nothing of it is executed to find out."""

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from msgspec import Struct

from dmi.errors import UsageError
from dmi_protocol.model import Format

_PICKLE_BYTES = 64 << 20
"""A pickle whose tensors lie beside it is small; of a larger one the beginning tells enough."""
_PICKLES = 6
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OSError,
)
_HEADER_BYTES = 100 << 20
_PLAIN = ("collections.OrderedDict", "torch.", "numpy", "_codecs", "__builtin__", "builtins", "argparse.Namespace")
_OWN_EXPORT = {"model_state_dict", "optimizer_state_dict"}
_STATE_HINT = (
    "give the function that makes the model, too: `dmi-node models add NAME net.py:make --weights weights.safetensors` "
    "(safetensors.torch.save_file writes that file)"
)
_SCRIPT_HINT = "or save the model whole, with torch.export.save or torch.jit.script(model).save"


class Pickled(Struct, frozen=True):
    """What a pickle speaks of: the classes and functions that it names, and its texts."""

    globals: tuple[str, ...]
    texts: tuple[str, ...]
    begins_with_class: bool
    """Is it an object, and no plain dict or list?"""


def form_of(path: Path) -> Format:
    """Raises ``UsageError``, which says what the file is and what to give instead."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder; give one model file, or module:function with --weights") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith(b"PK\x03\x04"):
        return _form_of_archive(path)
    raise UsageError(f"{path.name} {_what_else(path, head)}")


def _form_of_archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name.partition("/")[2] for name in archive.namelist()]
            if "archive_format" in inside or "serialized_exported_program.json" in archive.namelist():
                return "exported"
            if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
                return "torchscript"
            if "data.pkl" in inside:
                pickle = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(pickle) as file:
                    raise UsageError(f"{path.name} {_of_pickle(_pickled(io.BytesIO(file.read(_PICKLE_BYTES))))}")
    except _DAMAGED as error:
        raise UsageError(f"{path.name} is cut short or damaged: {error}; copy it again") from error
    raise UsageError(f"{path.name} is a zip archive and no model of torch; {_SCRIPT_HINT[3:]}")


def _pickled(stream: IO[bytes]) -> Pickled:
    """The opcodes are read and none is executed. Torch once wrote some small pickles before the one that counts."""
    names: list[str] = []
    texts: list[str] = []
    begins_with_class = False
    for _ in range(_PICKLES):
        try:
            for opcode, argument, _place in pickletools.genops(stream):
                if opcode.name in {"GLOBAL", "STACK_GLOBAL"}:
                    begins_with_class = (
                        begins_with_class or not texts or (opcode.name == "STACK_GLOBAL" and len(texts) == 2)
                    )
                    names.append(str(argument or ".".join(texts[-2:])).replace(" ", "."))
                elif isinstance(argument, str):
                    texts.append(argument)
        except ValueError:  # it is cut: what was read tells enough
            break
        if names:
            break
        texts.clear()
    return Pickled(tuple(names), tuple(texts), begins_with_class)


def _of_pickle(found: Pickled) -> str:
    if _OWN_EXPORT & set(found.texts):
        return (
            "holds weights and an optimizer's state, as `dmi-node export JOB model.pt` writes them, and not the model itself: "
            "`dmi-node models add NAME --job JOB --model net.py:make` takes the weights straight from the job"
        )
    code = [name for name in found.globals if name.startswith("torch.nn.modules") or not name.startswith(_PLAIN)]
    if code and found.begins_with_class and found.globals[0] == code[0]:
        named = code[0].rpartition(".")[2]
        return f"is a pickled {named}, which is code and is not executed here; {_STATE_HINT}, {_SCRIPT_HINT}"
    if found.begins_with_class or (found.texts and "." in found.texts[0]):
        return f"holds only weights (a state dict); {_STATE_HINT}, {_SCRIPT_HINT}"
    return f"is a training checkpoint or another pickle, and no model; {_STATE_HINT}, {_SCRIPT_HINT}"


def _what_else(path: Path, head: bytes) -> str:
    if not head:
        return "is empty"
    if _is_safetensors(path, head):
        return f"holds only weights (safetensors); {_STATE_HINT.replace('weights.safetensors', path.name).partition(' (safe')[0]}"
    if head.startswith(b"\x80"):
        with path.open("rb") as file:
            return _of_pickle(_pickled(file))
    if head.startswith((b"\x08", b"\x0a")) and path.suffix == ".onnx":
        return f"is an ONNX model, which is not read here; {_SCRIPT_HINT[3:]}"
    if _is_text(path):
        hint = f"; give its function, as in {path.name}:make" if path.suffix == ".py" else f"; {_SCRIPT_HINT[3:]}"
        return f"is text and no model{hint}"
    return f"is no model that torch writes; {_SCRIPT_HINT[3:]}"


def is_safetensors(path: Path) -> bool:
    """Does it begin as one does? Raises ``UsageError`` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return _is_safetensors(path, file.read(16))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _is_safetensors(path: Path, head: bytes) -> bool:
    size = struct.unpack("<Q", head[:8].ljust(8, b"\xff"))[0]
    if not 2 <= size <= min(_HEADER_BYTES, path.stat().st_size) or head[8:9] != b"{":
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(size)), dict)
        except ValueError:
            return False


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        piece = file.read(4096)
    return b"\0" not in piece and not any(_control(piece))


def _control(piece: bytes) -> Iterator[int]:
    return (byte for byte in piece if byte < 32 and byte not in b"\t\n\r\f\b\x1b")
