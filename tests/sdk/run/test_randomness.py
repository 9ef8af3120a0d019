"""What is drawn at random belongs to its leaf, or to its step, whoever computes it and in whatever order."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from dmi.errors import UsageError
from dmi.run import begin
from dmi.run.plain import PlainExchange
from dmi.run.run import Run
from dmi_tensor import fingerprint
from dmi_tensor.random_streams import sow_fetch, sow_leaf

Draw = Callable[[], torch.Tensor]
DRAWS: dict[str, Draw] = {
    "torch": lambda: torch.randn(6),
    "numpy": lambda: torch.from_numpy(np.random.standard_normal(6)).float(),
    "random": lambda: torch.tensor([random.gauss(0, 1) for _ in range(6)]),
}


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Augmentation in ``__getitem__``, the commonest thing there is."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        return place / 40 + 0.1 * self._draw(), torch.tensor(place % 3)


class Backwards(PlainExchange):
    """Computes the leaves of a step from the last to the first, as another number of workers would in another order."""

    def begin(self, *arguments: object) -> None:
        super().begin(*arguments)  # type: ignore[arg-type]
        self._next = iter(reversed(list(self._next)))


def train(exchange: PlainExchange, draw: Draw) -> tuple[list[torch.Tensor], list[float]]:
    """The weights, and what the script drew between the steps."""
    begin.init(seed=0)  # for its determinism
    run = Run(exchange, 0, 4)
    model = run.model(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    between = []
    for _ in run.epochs(2):
        for step in run.steps(Noisy(draw), batch_size=12):
            for inputs, labels in step:
                nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            between.append(float(torch.rand(())) + random.random() + float(np.random.rand()))
    return [parameter.detach().clone() for parameter in model.parameters()], between


@pytest.mark.parametrize("source", DRAWS)
def test_random_samples_are_those_of_their_leaf(source: str) -> None:
    weights, between = train(PlainExchange(), DRAWS[source])
    others, between_others = train(Backwards(), DRAWS[source])
    assert all(torch.equal(mine, other) for mine, other in zip(weights, others, strict=True))
    assert between == between_others
    assert len(set(between)) == len(between)


def test_computing_draws_from_another_stream_than_fetching() -> None:
    """Else loader processes, which fetch elsewhere, would change what dropout does."""
    sow_fetch(0, 0, 2)
    fetched = float(torch.rand(()))
    sow_leaf(0, 0, 2)
    assert float(torch.rand(())) != fetched


def test_a_generator_that_the_data_holds_is_refused_in_a_line() -> None:
    own = np.random.default_rng(0)
    run = begin.init(seed=0)
    model = run.model(nn.Linear(6, 3))
    run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match=r"sample 0 of Noisy is another one each time.*generator of its own"):
        next(run.steps(Noisy(lambda: torch.from_numpy(own.standard_normal(6)).float()), batch_size=16))


@pytest.mark.parametrize("source", DRAWS)
def test_the_digest_of_the_data_draws_nothing_and_depends_on_no_draw(source: str) -> None:
    begin.init(seed=0)
    expected = float(torch.rand(())), float(np.random.rand()), random.random()
    begin.init(seed=0)
    found = fingerprint.data(Noisy(DRAWS[source]))
    assert (float(torch.rand(())), float(np.random.rand()), random.random()) == expected
    assert fingerprint.data(Noisy(DRAWS[source])) == found


class Held(Dataset[object]):
    """Samples of a kind."""

    def __init__(self, *samples: object) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> object:
        return self._samples[place]


def test_arrays_count_with_all_their_values_and_objects_with_their_kind() -> None:
    zeros, ones = np.zeros((3, 224, 224), np.float32), np.ones((3, 224, 224), np.float32)
    assert fingerprint.data(Held(zeros)) == fingerprint.data(Held(zeros.copy()))
    assert fingerprint.data(Held(zeros)) != fingerprint.data(Held(ones))
    assert fingerprint.data(Held(object())) == fingerprint.data(Held(object()))
