"""The loops that a script is in: the steps of a pass, the leaves of a step, and the leaves of an evaluation."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from dmi.errors import UsageError
from dmi.run import batchnorm
from dmi.run.loading import Request, fetcher_of
from dmi.run.source import Batches, Source
from dmi_protocol.training.tree import leaf_range


class Leaves(Protocol):
    """What these loops need of their run."""

    seed: int
    leaves: int

    def expected_leaves(self) -> tuple[int, ...]:
        """Those of a step that fall to this worker, as things are."""
        ...

    def begin_step(self, samples: int) -> None:
        """A step over a batch of ``samples`` samples begins."""
        ...

    def next_leaf(self) -> int | None:
        """A leaf to compute now, or None when the step is complete."""
        ...

    def begin_part(self, *stream: int | str) -> None:
        """Buffers and random streams are those in which this leaf, or part of one, is computed."""
        ...

    def end_leaf(self, leaf: int, samples: int) -> None:
        """The script has done its part."""
        ...

    def end_step(self) -> dict[str, float]:
        """The step is complete everywhere; gives its metrics."""
        ...

    def repeat_step(self) -> dict[str, float]:
        """The step was complete before the place that the run goes on from."""
        ...

    def begin_evaluation(self, samples: int, data: str) -> None:
        """An evaluation over ``samples`` samples begins; ``data`` tells which they are."""
        ...

    def end_part(self, samples: int) -> None:
        """A part of an evaluation's leaf was computed."""
        ...

    def end_evaluated(self, leaf: int, samples: int) -> None:
        """All parts of the leaf were."""
        ...

    def end_evaluation(self) -> dict[str, float]:
        """The evaluation is complete everywhere; gives its metrics."""
        ...


class Step:
    """One optimizer step. Iterate over it for the batches of the leaves that fall to this worker."""

    def __init__(self, run: Leaves, a_pass: "Pass", number: int, place: int) -> None:
        self._run, self._pass = run, a_pass
        self.number, self.index = number, place
        """The steps that were made before it, in the training and in this pass: also after a recovery, where ``enumerate`` would
        begin anew."""
        self.metrics: dict[str, float] = {}
        """After the loop: the mean of each reported number over the step's samples, the same on every worker."""

    def __iter__(self) -> Iterator[Any]:
        samples = len(self._pass.batches.places[self.index])
        self._run.begin_step(samples)
        while (leaf := self._run.next_leaf()) is not None:
            request = self._pass.request(self.number, self.index, leaf)
            if request.places:
                batch = self._pass.fetcher.get(request)
                self._run.begin_part(self.number, leaf)
                with self._pass.watched():
                    yield batch
            self._run.end_leaf(leaf, len(request.places))
        self.metrics = self._run.end_step()


class DoneStep(Step):
    """The step after which a mark was made: it has no leaves any more, and what the script does after it is done again."""

    def __iter__(self) -> Iterator[Any]:
        self.metrics = self._run.repeat_step()
        return iter(())


class Pass:
    """One pass over the data."""

    def __init__(self, run: Leaves, source: Source, batches: Batches, module: nn.Module) -> None:
        self._run, self._module = run, module
        self.batches = batches
        self._first = 0
        """The number of its first step."""
        self.fetcher = fetcher_of(source, run.seed, self._ahead)
        fewest = batches.smallest(run.leaves)
        self._fewest = fewest if max(1, fewest // run.leaves) == 1 else None
        """A batch that has leaves of one sample, until the first leaf was computed."""

    def step(self, number: int, place: int, *, is_done: bool) -> Step:
        """The step ``number``, with the batch at ``place``."""
        self._first = number - place
        return (DoneStep if is_done else Step)(self._run, self, number, place)

    def request(self, number: int, place: int, leaf: int) -> Request:
        """The samples of a leaf."""
        batch = self.batches.places[place]
        span = leaf_range(len(batch), self._run.leaves, leaf)
        return Request((number, leaf), batch[span.start : span.stop], (number, leaf))

    def _ahead(self, request: Request) -> Iterator[Request]:
        """That one, and those that are likely to follow it."""
        number, leaf = request.key
        yield request
        for place in range(number - self._first, len(self.batches.places)):
            for each in self._run.expected_leaves():
                following = self.request(self._first + place, place, each)
                if following.places and following.key > (number, leaf):
                    yield following

    def watched(self) -> Any:
        """Around the first leaf, where there will be leaves of one sample."""
        fewest, self._fewest = self._fewest, None
        return nullcontext() if fewest is None else batchnorm.watched(self._module, fewest, self._run.leaves)


class Evaluation:
    """A pass without gradients, in evaluation mode, over leaves that each have a part of all samples. Iterate over it for the
    batches of those that fall to this worker."""

    def __init__(self, run: Leaves, source: Source, number: int, data: str, module: nn.Module) -> None:
        self._run, self._source, self._number, self._data, self._module = run, source, number, data, module
        self._size = max(1, (source.batch_size or 1) // run.leaves)
        self.is_begun = False
        self.metrics: dict[str, float] = {}
        """After the loop: the mean of each reported number over all samples, the same on every worker."""

    def __iter__(self) -> Iterator[Any]:
        if self.is_begun:
            raise UsageError("an evaluation is looped over once; ask run.evaluate for another one")
        self.is_begun = True
        samples = len(self._source.dataset)
        fetcher = fetcher_of(self._source, self._run.seed, self._ahead)
        self._run.begin_evaluation(samples, self._data)
        modes = [(module, module.training) for module in self._module.modules()]
        has_gradients = torch.is_grad_enabled()
        self._module.eval()
        torch.set_grad_enabled(False)
        try:
            while (leaf := self._run.next_leaf()) is not None:
                for request in self._requests(leaf):
                    batch = fetcher.get(request)
                    self._run.begin_part(*request.stream)
                    yield batch
                    self._run.end_part(len(request.places))
                self._run.end_evaluated(leaf, len(leaf_range(samples, self._run.leaves, leaf)))
        finally:
            torch.set_grad_enabled(has_gradients)
            for module, mode in modes:
                module.training = mode
            fetcher.close()
        self.metrics = self._run.end_evaluation()

    def _requests(self, leaf: int) -> Iterator[Request]:
        span = leaf_range(len(self._source.dataset), self._run.leaves, leaf)
        for part, start in enumerate(range(span.start, span.stop, self._size)):
            places = range(start, min(start + self._size, span.stop))
            yield Request((self._number, leaf, part), places, ("evaluation", self._number, leaf, part))

    def _ahead(self, request: Request) -> Iterator[Request]:
        yield request
        for leaf in self._run.expected_leaves():
            yield from (following for following in self._requests(leaf) if following.key > request.key)


class DoneEvaluation(Evaluation):
    """One that was done before the place that the run goes on from; ``metrics`` are those of then."""

    def __init__(self, metrics: dict[str, float]) -> None:
        self.metrics = metrics

    def __iter__(self) -> Iterator[Any]:
        return iter(())
