"""A model in stages that one process computes in turn: it holds the weights of one of them at a time."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dmi_protocol.identity import BlobHash
from dmi_protocol.model import ModelContent
from dmi_tensor.stages import StageGraph, weights_of, whole_of

Outputs = dict[str, Tensor]


class StagesInTurn:
    """``files`` gives the path of each of the stages' files. Raises ``ModelError``."""

    def __init__(self, content: ModelContent, files: Mapping[BlobHash, Path], device: str = "cpu") -> None:
        first = {file.name: files[file.blob] for file in content.stages[0].files}
        self._whole = whole_of(content, first["graph"])
        self._weights = [
            next(files[file.blob] for file in stage.files if file.name == "weights") for stage in content.stages
        ]
        self._bounds = [(stage.first, stage.last) for stage in content.stages]
        self._device = device
        self.names = self._whole.names
        """Of the inputs, in order."""
        self.carried_bytes = 0
        """The most of one batch that there was between two stages, or went into the first."""

    def run(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """A batch; without gradients. Raises what the model does."""
        (found,) = self.run_each([inputs])
        if isinstance(found, Exception):
            raise found
        return found

    def run_each(self, batches: Sequence[Mapping[str, Tensor]]) -> list[Outputs | Exception]:
        """Of each batch the outputs, or what the model raised: every stage computes all of them before the next one is read."""
        found: list[Outputs | Exception] = [dict(batch) for batch in batches]
        for (first, last), path in zip(self._bounds, self._weights, strict=True):
            self._look(found)
            stage = StageGraph(self._whole, first, last, weights_of(path, self._device))
            for place, carried in enumerate(found):
                if not isinstance(carried, Exception):
                    found[place] = _run(stage, carried)
            del stage
        return found

    def _look(self, carried: Iterable[Outputs | Exception]) -> None:
        sizes = [sum(t.nbytes for t in each.values()) for each in carried if not isinstance(each, Exception)]
        self.carried_bytes = max([self.carried_bytes, *sizes])


def _run(stage: StageGraph, inputs: Outputs) -> Outputs | Exception:
    try:
        return stage.run(inputs)
    except Exception as error:  # noqa: BLE001 (the model raises whatever it is given: that is this batch's outcome)
        return error
