"""Computing batches: a slice is a whole number of them, and each is a pure function of its inputs and the configuration."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dmi.errors import DmiError
from dmi.infer.config import Config
from dmi.infer.inputs import Bad, Given, Pack
from dmi.infer.prepare import Prepared, Preparer
from dmi.infer.rows import Rows
from dmi_protocol.model import ModelContent, TensorInfo
from dmi_tensor.in_turn import StagesInTurn
from dmi_tensor.models import Loaded, example


class InputsChangedError(DmiError):
    """Some are not there any more."""


Source = Callable[[int, int, Container[int], Pack | None], Iterator[Given]]
"""Gives inputs from a start to a stop, in order; some of them need not be decoded; where they travel from a pack."""
NOBODY: Mapping[int, str] = {}
_CARRIED_BYTES = 128 << 20
"""Of the batches that wait between two stages that are computed in turn."""


class Batches:
    """``loaded`` computes what ``content`` describes. Stages that are computed in turn compute several batches before the next
    one is read."""

    def __init__(self, config: Config, source: Source, content: ModelContent, loaded: Loaded | StagesInTurn) -> None:
        """Raises ``UsageError`` for what does not fit together."""
        self._config = config
        self._source = source
        self._inputs = content.inputs
        self._loaded = loaded
        self._prepare = Preparer(config, content.inputs)
        self._rows = Rows(config, content.outputs)
        self._fixed = next((info.shape[0] for info in content.inputs if info.is_batched), None)

    def compute(
        self,
        start: int,
        stop: int,
        masked: Mapping[int, str] = NOBODY,
        pack: Pack | None = None,
        *,
        alone: bool = False,
    ) -> Iterator[list[dict[str, Any]]]:
        """The rows of inputs ``start`` to ``stop``, batch by batch. ``start`` is a multiple of the batch size. Inputs that are
        ``masked`` are bad ones, for this cause. With ``alone`` no batch is begun before the one before has been taken."""
        given = self._given(start, stop, masked, pack)
        if not isinstance(self._loaded, StagesInTurn) or alone:
            yield from map(self._batch, given)
            return
        while group := list(islice(given, self._ahead(self._loaded))):
            yield from self._group(self._loaded, group)

    def _ahead(self, loaded: StagesInTurn) -> int:
        """How many batches are computed together: it is known how large they are, once one was computed."""
        return max(1, _CARRIED_BYTES // loaded.carried_bytes) if loaded.carried_bytes else 1

    def _group(self, loaded: StagesInTurn, group: Sequence[Sequence[Given]]) -> Iterator[list[dict[str, Any]]]:
        """What the model does not take as it is is computed again, on its own."""
        prepared = [self._alike(self._prepare.batch(batch)) for batch in group]
        good = [[p for p, each in enumerate(batch) if not isinstance(each, Bad)] for batch in prepared]
        able = [place for place, places in enumerate(good) if places]
        tensors = [self._tensors(prepared[place], good[place], None) for place in able]
        outcomes = dict(zip(able, loaded.run_each(tensors), strict=True))
        for place, batch in enumerate(group):
            outcome = outcomes.get(place)
            yield self._rows_of(batch, prepared[place], outcome if isinstance(outcome, dict) else None)

    def _given(self, start: int, stop: int, masked: Mapping[int, str], pack: Pack | None) -> Iterator[list[Given]]:
        """Batch by batch."""
        batch: list[Given] = []
        place = start - 1
        for place, given in enumerate(self._source(start, stop, masked, pack), start):
            batch.append(Given(given.id, Bad(masked[place])) if place in masked else given)
            if len(batch) == self._config.batch_size:
                yield batch
                batch = []
        if place + 1 != stop:
            raise InputsChangedError(
                f"{self._config.input.path} has other inputs than when it was listed: submit it again"
            )
        if batch:
            yield batch

    def _batch(self, batch: Sequence[Given]) -> list[dict[str, Any]]:
        return self._rows_of(batch, self._alike(self._prepare.batch(batch)), None)

    def _rows_of(
        self, batch: Sequence[Given], prepared: list[Prepared], outputs: dict[str, Tensor] | None
    ) -> list[dict[str, Any]]:
        """``outputs`` is None where they are not computed yet."""
        ids = [given.id for given in batch]
        outputs = self._outputs(prepared) if outputs is None else outputs
        if all(isinstance(each, Bad) for each in prepared):
            return [{"id": name, "error": str(each)} for name, each in zip(ids, prepared, strict=True)]
        return self._rows.of(
            ids, prepared, {name: tensor[: len(batch)] for name, tensor in outputs.items() if tensor.dim()}
        )

    def _outputs(self, prepared: list[Prepared], filler: int | None = None) -> dict[str, Tensor]:
        """Of the whole batch. An input for which the model raises is a bad one, and is found by halving. In the places of bad
        ones are zeros, or where the model raises for zeros the input at ``filler``."""
        good = [place for place, each in enumerate(prepared) if not isinstance(each, Bad)]
        if not good:
            return {}
        try:
            return self._computed(prepared, good, filler)
        except Exception as error:  # noqa: BLE001 (whatever a model raises for what it cannot take)
            if filler is None and (other := self._filler(prepared, good, error)) is not None:
                return self._outputs(prepared, other)
            for place, why in list(self._culprits(prepared, good, filler, error)):
                prepared[place] = Bad(f"the model raised {type(why).__name__}: {_first_line(why)}"[:200])
        return self._outputs(prepared, filler)

    def _filler(self, prepared: Sequence[Prepared], good: Sequence[int], error: Exception) -> int | None:
        """The first good input that the model takes alone, where it does not take zeros. Raises ``error`` when it takes
        nothing."""
        for filler in (None, *good):
            with suppress(Exception):
                self._computed(prepared, [], filler)
                return filler
        raise error

    def _culprits(
        self, prepared: Sequence[Prepared], places: Sequence[int], filler: int | None, error: Exception
    ) -> Iterator[tuple[int, Exception]]:
        """Of ``places``, for which the model raised ``error``; all of them, where it raises only for several together."""
        if len(places) == 1:
            yield places[0], error
            return
        found = False
        for half in (places[: len(places) // 2], places[len(places) // 2 :]):
            try:
                self._computed(prepared, half, filler)
            except Exception as why:  # noqa: BLE001 (see above)
                found = True
                yield from self._culprits(prepared, half, filler, why)
        if not found:
            yield from ((place, error) for place in places)

    def _computed(self, prepared: Sequence[Prepared], places: Sequence[int], filler: int | None) -> dict[str, Tensor]:
        """With these inputs, and zeros or the filler for all others."""
        return self._run(self._tensors(prepared, places, filler), len(prepared))

    def _tensors(self, prepared: Sequence[Prepared], places: Sequence[int], filler: int | None) -> dict[str, Tensor]:
        return {info.name: self._stack(info, prepared, frozenset(places), filler) for info in self._inputs}

    def _alike(self, prepared: list[Prepared]) -> list[Prepared]:
        """Where the model takes any size all inputs of a batch have that of the first good one."""
        first = next((each for each in prepared if not isinstance(each, Bad)), None)
        hint = "; set preprocess.resize" if self._config.input.kind == "images" else ""
        for place, each in enumerate(prepared):
            if first is None or isinstance(each, Bad):
                continue
            odd = [name for name, tensor in each.items() if tensor.shape != first[name].shape]
            if odd:
                shapes = tuple(each[odd[0]].shape), tuple(first[odd[0]].shape)
                prepared[place] = Bad(f"its shape is {shapes[0]}, and that of its batch {shapes[1]}{hint}")
        return prepared

    def _stack(
        self, info: TensorInfo, prepared: Sequence[Prepared], places: frozenset[int], filler: int | None
    ) -> Tensor:
        """A bad input keeps its place: its neighbours are where they would be without it."""
        good = next(each[info.name] for each in prepared if not isinstance(each, Bad))
        filling = prepared[filler] if filler is not None else None
        if not info.is_batched:
            return good
        empty = torch.zeros_like(good) if filling is None or isinstance(filling, Bad) else filling[info.name]
        rows = [
            empty if isinstance(each, Bad) or place not in places else each[info.name]
            for place, each in enumerate(prepared)
        ]
        if self._fixed is not None:
            rows += [empty] * (self._fixed - len(rows))
        return torch.stack(rows).to(self._config.device)

    def _run(self, tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
        """Some exported programs take no batch of one: it is filled up with zeros then."""
        try:
            return self._loaded.run(tensors)
        except Exception:
            if size != 1 or self._fixed is not None:
                raise
            filled = {
                info.name: torch.cat([tensors[info.name], torch.zeros_like(tensors[info.name])])
                if info.is_batched
                else tensors[info.name]
                for info in self._inputs
            }
            return self._loaded.run(filled)

    def warm_up(self) -> None:
        """The first call is slow: what torch prepares then is prepared before anything is measured. Stages that are computed in
        turn would be read for it, and seem small."""
        if isinstance(self._loaded, StagesInTurn):
            return
        size = self._fixed or min(2, self._config.batch_size)
        self._loaded.run({info.name: example(info, size).to(self._config.device) for info in self._inputs})


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
