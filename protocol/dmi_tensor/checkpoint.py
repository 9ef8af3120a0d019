"""What is kept of a step: each shard writes its part, and the parts together are the model, whoever reads them.

A part is a safetensors file. One metadata key holds a header; tensors are the shard's buckets (``bucket/7``), its
optimizer's state (``state/7/0/exp_avg``: bucket, segment, name), and the bytes of what the run itself keeps (``extra``).
"""

import base64
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dmi_protocol.training.layout import Definition, Layout, lay_out
from dmi_tensor.buckets import Buckets
from dmi_tensor.optimizers import groups_of
from dmi_tensor.shard import Shard

_HEADER = "dmi-part"
_EXTRA = "extra"


class CorruptPartError(Exception):
    """A file that should be a part of a checkpoint is none. The text names it and says why."""


class Header(msgspec.Struct, frozen=True):
    """What a part says of itself. ``hyper`` is base64, ``scalars`` the optimizer state that is no tensor; ``fingerprint`` is that
    of the workers that trained up to here."""

    definition: Definition
    step: int
    shard: int
    shards: int
    hyper: str
    scalars: dict[str, int | float | bool]
    fingerprint: tuple[tuple[str, str], ...] = ()


class Part(msgspec.Struct, frozen=True):
    """A part in memory: bucket index to flat tensor, and (bucket, segment) to optimizer state. ``extra`` is what the run itself
    keeps, empty in the parts of all shards but the first."""

    header: Header
    buckets: dict[int, torch.Tensor]
    state: dict[tuple[int, int], dict[str, Any]]
    extra: bytes = b""

    def copy(self, meanwhile: Callable[[], None] = lambda: None) -> "Part":
        """The same, in memory that nobody writes. It may take long: ``meanwhile`` is called after each tensor."""

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            meanwhile()
            return tensor.clone()

        buckets = {bucket: copied(tensor) for bucket, tensor in self.buckets.items()}
        state = {
            place: {name: copied(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
            for place, values in self.state.items()
        }
        return Part(self.header, buckets, state, self.extra)


def part_of(
    shard: Shard, index: int, shards: int, step: int, extra: bytes, fingerprint: tuple[tuple[str, str], ...] = ()
) -> Part:
    """The part of ``shard`` at version ``step``; tensors are the shard's own memory."""
    scalars: dict[str, int | float | bool] = {}
    state: dict[tuple[int, int], dict[str, Any]] = {}
    buckets: dict[int, torch.Tensor] = {}
    for bucket in (*shard.buckets, *shard.frozen):
        if shard.layout.buckets[bucket].kind == "metrics":
            continue
        buckets[bucket] = shard.read(bucket, step)
        if shard.layout.buckets[bucket].kind == "parameter":
            for place, values in enumerate(shard.state(bucket)):
                state[bucket, place] = values
                scalars |= {f"state/{bucket}/{place}/{k}": v for k, v in values.items() if isinstance(v, int | float)}
    header = Header(shard.definition, step, index, shards, _text(shard.hyper), scalars, fingerprint)
    return Part(header, buckets, state, extra)


def write_part(path: Path, part: Part) -> int:
    """Write and sync; gives the number of bytes. Raises ``OSError`` when the disk cannot."""
    tensors = {f"bucket/{index}": tensor.contiguous() for index, tensor in part.buckets.items()}
    for (bucket, place), values in part.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"state/{bucket}/{place}/{name}"] = value.detach().contiguous()
    if part.extra:
        tensors[_EXTRA] = torch.frombuffer(bytearray(part.extra), dtype=torch.uint8)
    header = base64.b64encode(msgspec.msgpack.encode(part.header)).decode("ascii")
    temporary = path.with_suffix(".part")
    _save(tensors, temporary, {_HEADER: header})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    temporary.replace(path)
    return size


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write without a copy in memory and without the interpreter's lock. Raises ``OSError``, as Python's own files do."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found.group(1))
        raise OSError(number, os.strerror(number), str(path)) from error


def read_part(path: Path) -> Part:
    """A part that ``write_part`` wrote. Raises ``CorruptPartError``."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = msgspec.msgpack.decode(base64.b64decode(metadata[_HEADER]), type=Header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, ValueError, msgspec.DecodeError) as error:
        raise CorruptPartError(f"{path} is no part of a checkpoint: {error}") from error
    extra = tensors.pop(_EXTRA, None)
    buckets: dict[int, torch.Tensor] = {}
    state: dict[tuple[int, int], dict[str, Any]] = {}
    for name, value in [*tensors.items(), *header.scalars.items()]:
        kind, bucket, *rest = name.split("/")
        if kind == "bucket" and isinstance(value, torch.Tensor):
            buckets[int(bucket)] = value
        else:
            state.setdefault((int(bucket), int(rest[0])), {})[rest[1]] = value
    return Part(header, buckets, state, b"" if extra is None else extra.numpy().tobytes())


def extra_of(parts: Iterable[Part]) -> bytes:
    """What the run itself keeps, from whichever part has it; empty where none has."""
    return next((part.extra for part in parts if part.extra), b"")


def restore(shard: Shard, parts: Sequence[Part], meanwhile: Callable[[], None] = lambda: None) -> int:
    """Put the buckets of ``shard`` to what ``parts`` hold of them, with their optimizers' state; gives the version.
    ``meanwhile`` is called after each bucket.

    The layout is a function of the job, so the parts may be those of another number of shards. Raises
    ``CorruptPartError`` when they are of another model, or lack a bucket.
    """
    step = parts[0].header.step
    missing = {b for b in (*shard.buckets, *shard.frozen) if shard.layout.buckets[b].kind != "metrics"}
    for part in parts:
        if part.header.definition != shard.definition or part.header.step != step:
            raise CorruptPartError("it is of another model or step: the script describes its model differently now")
        hyper = base64.b64decode(part.header.hyper)
        for bucket in missing & part.buckets.keys():
            places = range(len(shard.layout.buckets[bucket].segments))
            state = [part.state.get((bucket, place), {}) for place in places]
            shard.restore(step, bucket, part.buckets[bucket], hyper, state)
            meanwhile()
        missing -= part.buckets.keys()
    if missing:
        raise CorruptPartError(f"its parts lack the buckets {sorted(missing)}")
    return step


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Model:
    """A whole model at one step, put together from all of its parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises ``CorruptPartError`` unless the parts are all those of one step."""
        headers = [part.header for part in parts]
        if not headers or {h.shard for h in headers} != set(range(headers[0].shards)):
            raise CorruptPartError(f"of {headers[0].shards if headers else 'all'} parts only {len(headers)} are here")
        if len({(h.step, h.shards) for h in headers}) != 1 or any(
            h.definition != headers[0].definition for h in headers
        ):
            raise CorruptPartError("the parts belong to different steps or jobs")
        self.definition = headers[0].definition
        self.step = headers[0].step
        self.extra = extra_of(parts)
        self._hyper = next((h.hyper for h in headers if h.hyper), "")
        self._layout = lay_out(self.definition)
        self._buckets = Buckets(self._layout)
        self._state: dict[tuple[int, int], dict[str, Any]] = {}
        for part in parts:
            for index, tensor in part.buckets.items():
                self._buckets.bucket(index).copy_(tensor)
            self._state |= part.state

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers under their names."""
        return named_tensors(self.definition, self._buckets)

    def optimizer_state(self) -> dict[str, Any]:
        """What torch's ``Optimizer.state_dict`` would give."""
        return optimizer_state(self.definition, self._layout, base64.b64decode(self._hyper), self._state)


def optimizer_state(
    definition: Definition, layout: Layout, hyper: bytes, kept: Mapping[tuple[int, int], dict[str, Any]]
) -> dict[str, Any]:
    """What torch's ``Optimizer.state_dict`` would give, from what is ``kept`` by bucket and segment. ``hyper`` is empty before
    the first step."""
    pieces = _by_parameter(layout, kept)
    groups = groups_of(hyper) if hyper else [{} for _ in definition.order]
    shapes = {p.name: p.shape for p in definition.parameters}
    state: dict[int, dict[str, Any]] = {}
    number = 0
    for names, group in zip(definition.order, groups, strict=True):
        group["params"] = list(range(number, number + len(names)))
        for name in names:
            if any(pieces.get(name, [])):
                state[number] = _joined(pieces[name], shapes[name])
            number += 1
    return {"state": state, "param_groups": groups}


def _by_parameter(layout: Layout, state: Mapping[tuple[int, int], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    pieces: dict[str, list[dict[str, Any]]] = {}
    for bucket in layout.buckets:
        for place, segment in enumerate(bucket.segments):
            if (bucket.index, place) in state:
                pieces.setdefault(segment.name, []).append(state[bucket.index, place])
    return pieces


def _joined(pieces: Sequence[dict[str, Any]], shape: tuple[int, ...]) -> dict[str, Any]:
    """One parameter's state from that of its pieces: what has a shape is joined, all else is the same everywhere."""
    if len(pieces) == 1:
        return pieces[0]
    joined: dict[str, Any] = {}
    for name, first in pieces[0].items():
        is_elementwise = isinstance(first, torch.Tensor) and first.dim() > 0
        joined[name] = torch.cat([piece[name].view(-1) for piece in pieces]).view(shape) if is_elementwise else first
    return joined


def named_tensors(definition: Definition, buckets: Buckets) -> dict[str, torch.Tensor]:
    """What an export holds: parameters, and the buffers that are persistent, in the model's order."""
    tensors = buckets.tensors(definition.shapes)
    kept = [p.name for p in definition.parameters] + [b.name for b in definition.buffers if b.persistent]
    return {name: tensors[name] for name in kept}


def export(path: Path, tensors: Mapping[str, torch.Tensor], optimizer_state: Mapping[str, Any] | None = None) -> None:
    """Write the model: safetensors without metadata, or with a ``.pt`` suffix a torch file with both state dicts."""
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask; safetensors gives its files to the owner alone
        if path.suffix in {".pt", ".pth"}:
            torch.save({"model_state_dict": own, "optimizer_state_dict": dict(optimizer_state or {})}, temporary)
        else:
            _save(own, temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_model(paths: Iterable[Path]) -> Model:
    """The model whose parts lie at ``paths``. Raises ``CorruptPartError``."""
    return Model([read_part(path) for path in paths])
