"""What the computing process of a deployment's replica does: it has the model in memory, and answers one batch after another.

It is told ``{"batch", "names", "specs", "rows", "segment": [name, size]}``, the tensors lying in that shared memory one after
another; it answers ``{"batch", "version", "names", "specs", "rejected", "segment", "final", "apart"}`` in the same way. A batch
that the model does not take is computed again, each request alone, to find out which requests it does not take. What goes from
stage to stage of a model cannot be parted by requests: such a batch is given back, to be computed ``apart`` from the first stage.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from dmi.infer.line import Line
from dmi_protocol.messages.roles import ReplicaLaunch
from dmi_protocol.model import ModelContent
from dmi_protocol.tensor_spec import TensorSpec
from dmi_tensor.frames import frame_of, spec_of, tensor_of
from dmi_tensor.models import Loaded, example, load
from dmi_tensor.stages import StageGraph, load_stage
from dmi_wire.arena import Arena, Arenas, Reader, place

_TEXT_CHARACTERS = 500


def answer(line: Line, launch: ReplicaLaunch) -> None:
    """Until the replica has gone. Raises ``ModelError`` where the model cannot be loaded."""
    content = launch.model.content
    files = {file.name: Path(path) for file, path in zip(content.files_of(launch.stage), launch.files, strict=True)}
    model: Answering | StageAnswering
    if content.stages:
        model = StageAnswering(load_stage(content, launch.stage, files), content)
    else:
        model = Answering(load(content.format, files, content.factory), content)
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
        found = model.compute(inputs, asked["rows"])
        _say(line, written.next(), asked["batch"], launch.model.id, found)


class Found(NamedTuple):
    """The outputs of all requests of a batch that are not ``rejected``, one after another: by their place, with what is said of
    each. For ``final`` and ``apart`` see the module."""

    outputs: Mapping[str, Tensor]
    rejected: dict[int, str]
    final: bool = True
    apart: str = ""


def _say(line: Line, arena: Arena, batch: int, version: str, found: Found) -> None:
    tensors = [tensor.detach().cpu().contiguous() for tensor in found.outputs.values()]
    specs = tuple(spec_of(tensor) for tensor in tensors)
    offsets, size = place(specs)
    name, whole, buffer = arena.room(size)
    for tensor, offset, spec in zip(tensors, offsets, specs, strict=True):
        buffer[offset : offset + spec.length_bytes] = frame_of(tensor)
    line.say(
        batch=batch,
        version=version,
        names=list(found.outputs),
        specs=specs,
        rejected=list(found.rejected.items()),
        segment=[name, whole],
        final=found.final,
        apart=found.apart,
    )


class Answering:
    """A loaded model that says of each request of a batch whether it takes it."""

    def __init__(self, loaded: Loaded, content: ModelContent) -> None:
        self._loaded = loaded
        self._content = content
        self._is_batched = {info.name for info in content.inputs if info.is_batched}

    def warm_up(self, most: int) -> None:
        """The first requests shall not be slower than others."""
        with suppress(
            Exception
        ):  # zeros may have a size that nobody would give: what is wrong shows at the first request
            for rows in (1, 2, most):
                self._loaded.run({info.name: example(info, rows) for info in self._content.inputs})

    def compute(self, inputs: Mapping[str, Tensor], rows: Sequence[int]) -> Found:
        """A batch of requests with so many rows each."""
        try:
            return Found(self._whole(inputs, sum(rows)), {})
        except Exception as error:  # noqa: BLE001 (the model raises whatever it is given)
            if len(rows) == 1:
                return Found(nothing(self._content), {}) if not rows[0] else Found({}, {0: _line(error)})
        found, rejected, first = list[dict[str, Tensor]](), dict[int, str](), 0
        for nth, count in enumerate(rows):
            mine = {name: t[first : first + count] if name in self._is_batched else t for name, t in inputs.items()}
            first += count
            try:
                found.append(self._whole(mine, count))
            except Exception as error:  # noqa: BLE001 (as above)
                rejected[nth] = _line(error)
        names = found[0] if found else ()
        return Found({name: torch.cat([outputs[name] for outputs in found]) for name in names}, rejected)

    def _whole(self, inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        outputs = self._loaded.run(inputs)
        demand_rows(self._content, outputs, rows)
        return outputs


class StageAnswering:
    """A stage of a model. What it says of a request is what the whole would say."""

    def __init__(self, stage: StageGraph, content: ModelContent) -> None:
        self._stage = stage
        self._content = content

    def warm_up(self, most: int) -> None:
        """The first requests shall not be slower than others."""
        with suppress(Exception):  # as in ``Answering``
            for rows in (1, 2, most):
                self._stage.run(self._stage.example(rows))

    def compute(self, inputs: Mapping[str, Tensor], rows: Sequence[int]) -> Found:
        """A batch of requests with so many rows each."""
        try:
            outputs = self._stage.run(inputs)
            if self._stage.is_last:
                demand_rows(self._content, outputs, sum(rows))
        except Exception as error:  # noqa: BLE001 (the model raises whatever it is given)
            if len(rows) > 1:
                return Found({}, {}, apart=f"the model does not take one of {len(rows)} requests: {_line(error)}")
            return Found(nothing(self._content), {}) if not rows[0] else Found({}, {0: _line(error)})
        return Found(outputs, {}, final=self._stage.is_last)


def nothing(content: ModelContent) -> dict[str, Tensor]:
    """The outputs for no inputs at all, which many models do not take."""
    return {info.name: example(info, 0) for info in content.outputs}


def demand_rows(content: ModelContent, outputs: Mapping[str, Tensor], rows: int) -> None:
    """Each batched output has as many rows as there are inputs. Raises ``ValueError``."""
    batched = {info.name for info in content.outputs if info.is_batched}
    for name, tensor in outputs.items():
        if name in batched and (not tensor.dim() or tensor.shape[0] != rows):
            raise ValueError(f"its output {name!r} has the shape {tuple(tensor.shape)} for {rows} inputs")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:_TEXT_CHARACTERS]
