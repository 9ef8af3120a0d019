"""What the computing process of a deployment's replica does: it has the model in memory, and answers one batch after another.

It is told ``{"batch", "names", "specs", "rows", "segment": [name, size]}``, the tensors lying in that shared memory one after
another; it answers ``{"batch", "version", "names", "specs", "rejected", "segment"}`` in the same way. A batch that the model does
not take is computed again, each request alone, to find out which requests it does not take.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from dmi.infer.line import Line
from dmi.serve.arena import Arena, Arenas, Reader, place
from dmi_protocol.messages.roles import ReplicaLaunch
from dmi_protocol.model import ModelContent
from dmi_protocol.tensor_spec import TensorSpec
from dmi_tensor.frames import frame_of, spec_of, tensor_of
from dmi_tensor.models import Loaded, example, load

_TEXT_CHARACTERS = 500


def answer(line: Line, launch: ReplicaLaunch) -> None:
    """Until the replica has gone. Raises ``ModelError`` where the model cannot be loaded."""
    content = launch.model.content
    files = {file.name: Path(path) for file, path in zip(content.files, launch.files, strict=True)}
    model = Answering(load(content.format, files, content.factory), content, launch.model.id)
    model.warm_up(launch.max_batch)
    line.say(ready=True)
    written, read = Arenas(), Reader()
    while True:
        asked = line.hear()
        specs = msgspec.convert(asked["specs"], tuple[TensorSpec, ...])
        (name, size), offsets = asked["segment"], place(specs)[0]
        inputs = {
            given: tensor_of(spec, read.view(name, size, offset, spec.length_bytes))
            for given, spec, offset in zip(asked["names"], specs, offsets, strict=True)
        }
        outputs, rejected = model.compute(inputs, asked["rows"])
        _say(line, written.next(), asked["batch"], model.version, outputs, rejected)


def _say(
    line: Line, arena: Arena, batch: int, version: str, outputs: Mapping[str, Tensor], rejected: dict[int, str]
) -> None:
    tensors = [tensor.detach().cpu().contiguous() for tensor in outputs.values()]
    specs = tuple(spec_of(tensor) for tensor in tensors)
    offsets, size = place(specs)
    name, whole, buffer = arena.room(size)
    for tensor, offset, spec in zip(tensors, offsets, specs, strict=True):
        buffer[offset : offset + spec.length_bytes] = frame_of(tensor)
    line.say(
        batch=batch,
        version=version,
        names=list(outputs),
        specs=specs,
        rejected=list(rejected.items()),
        segment=[name, whole],
    )


class Answering:
    """A loaded model that says of each request of a batch whether it takes it."""

    def __init__(self, loaded: Loaded, content: ModelContent, version: str) -> None:
        self._loaded = loaded
        self._content = content
        self._batched = {info.name for info in content.outputs if info.is_batched}
        self._is_batched = {info.name for info in content.inputs if info.is_batched}
        self.version = version

    def warm_up(self, most: int) -> None:
        """The first requests shall not be slower than others."""
        with suppress(
            Exception
        ):  # zeros may have a size that nobody would give: what is wrong shows at the first request
            for rows in (1, 2, most):
                self._loaded.run({info.name: example(info, rows) for info in self._content.inputs})

    def compute(self, inputs: Mapping[str, Tensor], rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[int, str]]:
        """The outputs of all requests that the model takes, one after another, and what it says of the others."""
        try:
            return self._whole(inputs, sum(rows)), {}
        except Exception as error:  # noqa: BLE001 (the model raises whatever it is given)
            if len(rows) == 1:
                return (self._nothing(), {}) if not rows[0] else ({}, {0: _line(error)})
        found, rejected, first = list[dict[str, Tensor]](), dict[int, str](), 0
        for nth, count in enumerate(rows):
            mine = {name: t[first : first + count] if name in self._is_batched else t for name, t in inputs.items()}
            first += count
            try:
                found.append(self._whole(mine, count))
            except Exception as error:  # noqa: BLE001 (as above)
                rejected[nth] = _line(error)
        names = found[0] if found else ()
        return {name: torch.cat([outputs[name] for outputs in found]) for name in names}, rejected

    def _nothing(self) -> dict[str, Tensor]:
        """The outputs of no inputs at all, which many models do not take."""
        return {info.name: example(info, 0) for info in self._content.outputs}

    def _whole(self, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        outputs = self._loaded.run(inputs)
        for name, tensor in outputs.items():
            if name in self._batched and (not tensor.dim() or tensor.shape[0] != rows):
                raise ValueError(f"its output {name!r} has the shape {tuple(tensor.shape)} for {rows} inputs")
        return outputs


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:_TEXT_CHARACTERS]
