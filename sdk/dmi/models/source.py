"""What a user gives as a model, made into the files and the description of a version."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dmi.errors import UsageError
from dmi.models.child import answer_of
from dmi.models.sniff import form_of, is_safetensors
from dmi_protocol.identity import BlobHash
from dmi_protocol.model import Format, ModelContent, ModelFile, TensorInfo

_FACTORY = re.compile(r"(?P<module>.+):(?P<function>[A-Za-z_]\w*)")
_INPUT = re.compile(r"(?:(?P<name>[^=]+)=)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[^\]]*)\]")
_SIZE = re.compile(r"\d{1,9}")
_ANY = {"*", "N", "?", "-1", "None"}


class Source(msgspec.Struct, frozen=True):
    """``files`` gives the path of each of the content's files by its name."""

    content: ModelContent
    files: dict[str, Path]


def source_of(given: str, weights: str | Path | None = None, inputs: Sequence[str] = ()) -> Source:
    """``given`` is a model file, or ``module:function`` or ``file.py:function`` with ``weights`` as safetensors; ``inputs``
    name what goes in where that cannot be found out (``x=float32[N,3,224,224]``). The model is run once, in a child process.

    Raises ``UsageError`` with one line.
    """
    said = tuple(_input(text) for text in inputs)
    found = _FACTORY.fullmatch(given)
    if found is not None and not Path(given).exists():
        return _of_factory(given, found["module"], found["function"], weights, said)
    if weights is not None:
        raise UsageError("--weights go with module:function; a model file has its own")
    path = Path(given)
    return _tried("", form_of(path), {"model": path}, said, path.name)


def _of_factory(
    given: str, module: str, function: str, weights: str | Path | None, said: tuple[TensorInfo, ...]
) -> Source:
    files: dict[str, Path] = {}
    name = module
    if module.endswith(".py"):
        files["code"] = Path(module)
        name = Path(module).stem
        if not files["code"].is_file():
            raise UsageError(f"there is no file {module}")
    if weights is None:
        raise UsageError(
            f"{given} makes an untrained model: give its weights, --weights FILE.safetensors, or --job JOB"
        )
    files["weights"] = Path(weights)
    if not is_safetensors(files["weights"]):
        raise UsageError(
            f"{weights} is no safetensors file: write it with safetensors.torch.save_file(model.state_dict(), ...) "
            "or `dmi-node export JOB FILE.safetensors`"
        )
    return _tried(f"{name}:{function}", "factory", files, said, given)


def _tried(factory: str, form: Format, files: dict[str, Path], said: tuple[TensorInfo, ...], what: str) -> Source:
    made = tuple(ModelFile(name, hash_of(path), path.stat().st_size) for name, path in sorted(files.items()))
    content = ModelContent(form, made, factory=factory)
    asked = {
        "content": msgspec.to_builtins(content),
        "files": {name: str(path.resolve()) for name, path in files.items()},
        "inputs": msgspec.to_builtins(said),
    }
    answer = answer_of("dmi.models.trial", asked, what)
    return Source(msgspec.convert(answer["content"], ModelContent), files)


def hash_of(path: Path) -> BlobHash:
    """The name of a file's bytes."""
    with path.open("rb") as file:
        return BlobHash(hashlib.file_digest(file, "sha256").hexdigest())


def _input(text: str) -> TensorInfo:
    """``x=float32[N,3,224,224]``; the first dimension counts inputs."""
    found = _INPUT.fullmatch(text.replace(" ", ""))
    sizes = found["shape"].split(",") if found is not None and found["shape"] else []
    if found is None or not sizes or any(size not in _ANY and not _SIZE.fullmatch(size) for size in sizes):
        raise UsageError(f"--input takes NAME=DTYPE[N,SIZE,...], as in x=float32[N,3,224,224], and not {text!r}")
    shape = tuple(None if size in _ANY else int(size) for size in sizes)
    return TensorInfo(found["name"] or "input", found["dtype"], shape)
