"""What is written for an input: ``{"id", "category", "score"}``, ``{"id", "outputs"}`` or ``{"id", "error"}``."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmi.errors import UsageError
from dmi.infer.columns import given_back, top_of
from dmi.infer.config import Config
from dmi.infer.inputs import Bad
from dmi.infer.prepare import function
from dmi_protocol.model import TensorInfo

_SHORT = {torch.float16, torch.bfloat16}
"""Have no form in JSON of their own; each of their values is one of float32."""


class Rows:
    """Rows of a batch. Scores are softmax probabilities, in float32, over the whole batch at once."""

    def __init__(self, config: Config, outputs: Sequence[TensorInfo]) -> None:
        """Raises ``UsageError`` for an output that the model does not have."""
        self._outputs = given_back(outputs)
        self._own = function(config.postprocess) if config.postprocess else None
        self._top = top_of(config, outputs)
        self._labels = _labels(config.output.labels)
        classes = self._outputs[0].shape[1] if self._top else None
        if self._labels and classes is not None and len(self._labels) != classes:
            raise UsageError(f"output.labels has {len(self._labels)} names, and the model {classes} classes")

    def of(self, ids: Sequence[Any], inputs: Sequence[Any], outputs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """One for each of ``ids``, in order; where an input is a ``Bad`` the outputs of its place do not count."""
        rows = self._tops(outputs) if self._top else self._all(outputs)
        return [
            {"id": name, "error": str(given)} if isinstance(given, Bad) else {"id": name, **row}
            for name, given, row in zip(ids, inputs, rows, strict=True)
        ]

    def _tops(self, outputs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        scores = torch.softmax(outputs[self._outputs[0].name].float(), dim=1)
        best, places = torch.sort(scores, dim=1, descending=True, stable=True)
        found: list[dict[str, Any]] = []
        for values, classes in zip(best[:, : self._top].tolist(), places[:, : self._top].tolist(), strict=True):
            named: list[dict[str, Any]] = [
                {"category": self._label(c), "score": v} for c, v in zip(classes, values, strict=True)
            ]
            if not all(map(math.isfinite, values)):
                found.append({"error": "the model's scores are not finite"})
            else:
                found.append(named[0] if self._top == 1 else {"top": named})
        return found

    def _label(self, place: int) -> int | str:
        return self._labels[place] if place < len(self._labels) else place

    def _all(self, outputs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        kept = {info.name: outputs[info.name].cpu() for info in self._outputs}
        return [self._one({name: tensor[place] for name, tensor in kept.items()}) for place in range(_length(kept))]

    def _one(self, outputs: dict[str, Tensor]) -> dict[str, Any]:
        if self._own is not None:
            return _of_own(self._own, outputs)
        plain = {name: (t.float() if t.dtype in _SHORT else t).tolist() for name, t in outputs.items()}
        odd = [name for name, t in outputs.items() if t.is_floating_point() and not torch.isfinite(t.float()).all()]
        if odd:
            return {"error": f"the model's {odd[0]!r} is not finite, which JSON cannot say"}
        return {"outputs": plain}


def _of_own(own: Callable[..., Any], outputs: dict[str, Tensor]) -> dict[str, Any]:
    try:
        made = own(outputs if len(outputs) > 1 else next(iter(outputs.values())))
        row = dict(made) if isinstance(made, Mapping) else {"outputs": made}
        if "id" in row:
            raise ValueError("it gives an 'id', which is the input's")
        json.dumps(row, allow_nan=False)
    except Exception as error:  # noqa: BLE001 (the user's function)
        line = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"postprocess raised {type(error).__name__}: {line}"[:200]}
    return row


def _length(outputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(outputs.values())))


def _labels(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"output.labels: {path} cannot be read: {error}") from error


def line_of(row: Mapping[str, Any]) -> bytes:
    """One line of ``results.jsonl``. A name that is no UTF-8 is written with escapes, and comes back as it was."""
    return json.dumps(row, allow_nan=False).encode() + b"\n"
