"""What ``run.steps`` and ``run.evaluate`` are given, and what is made of it."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from dmi.errors import UsageError
from dmi.run.begin import init
from dmi.run.plain import PlainExchange
from dmi.run.source import Source, understood
from tests.sdk.run.contents import data, joined, padded


def asked(given: Any, **options: Any) -> Source:
    chosen = {"shuffle": None, "drop_last": False, "collate_fn": None, "sampler": None, "workers": 0, "prefetch": 8}
    size = options.pop("batch_size", None)
    return understood(given, size, **{**chosen, **options})


def test_a_loader_is_taken_for_what_it_was_made_of() -> None:
    whole = data()
    found = asked(
        DataLoader(whole, 16, shuffle=True, drop_last=True, num_workers=2, prefetch_factor=3, collate_fn=padded)
    )
    assert found == Source(whole, 16, True, True, padded, None, 2, 3)  # noqa: FBT003
    plain = asked(DataLoader(whole, 16), batch_size=16)
    assert (plain.shuffle, plain.sampler, plain.collate_fn) == (False, None, None)


def test_its_sampler_decides_as_it_does_there() -> None:
    whole = data(10)
    some = RandomSampler(whole, replacement=True, num_samples=6)
    assert asked(DataLoader(whole, 2, sampler=some)).sampler is some
    batches = BatchSampler(SequentialSampler(whole), 3, drop_last=False)
    found = asked(DataLoader(whole, batch_sampler=batches))
    assert [list(batch) for batch in found.batches(0, 0).places] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize(
    ("loader", "options", "hint"),
    [
        ({"batch_size": 8, "generator": torch.Generator()}, {}, "DataLoader with generator"),
        ({"batch_size": 8, "worker_init_fn": print}, {}, "DataLoader with worker_init_fn"),
        ({"batch_size": None}, {}, "DataLoader with batch_size=None"),
        ({"batch_size": 8}, {"batch_size": 4}, "has batch_size=8 and run.steps 4"),
        ({"batch_size": 8}, {"drop_last": True}, "give them there"),
        ({"batch_size": 8}, {"workers": 2}, "give them there"),
    ],
)
def test_what_cannot_be_kept_is_named(loader: dict[str, Any], options: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        asked(DataLoader(data(), **loader), **options)


def test_a_sampler_follows_the_seed_and_the_epoch() -> None:
    def order(seed: int, epoch: int) -> Any:
        return asked(data(), batch_size=8, sampler=RandomSampler(data())).batches(seed, epoch)

    before = torch.get_rng_state()
    assert order(1, 2) == order(1, 2)
    assert order(1, 2).places != order(1, 3).places
    assert order(1, 2).order != order(2, 2).order
    assert torch.equal(torch.get_rng_state(), before), "the script's own streams go on"


def test_a_sampler_that_follows_another_generator_is_refused() -> None:
    held = RandomSampler(data(), generator=torch.Generator().manual_seed(3))
    with pytest.raises(UsageError, match=r"another order each time.*generator=None"):
        asked(data(), batch_size=8, sampler=held).batches(0, 0)
    with pytest.raises(UsageError, match="leave shuffle out"):
        asked(data(), sampler=held, shuffle=True)


def test_a_batch_needs_a_size() -> None:
    with pytest.raises(UsageError, match="batch_size is missing"):
        asked(data()).batches(0, 0)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (lambda: DataLoader(data(), 8, drop_last=True), "every sample once"),
        (lambda: DataLoader(data(), 8, sampler=RandomSampler(data(), num_samples=3)), "every sample once"),
        (data, "batch_size is missing"),
    ],
)
def test_an_evaluation_is_over_all_samples(given: Any, hint: str) -> None:
    with joined(PlainExchange()):
        run = init(leaves=4)
        model = run.model(nn.Linear(6, 3))
        run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(UsageError, match=hint):
            next(run.evaluate(given()))


def test_an_evaluation_is_a_mean_over_samples_and_changes_nothing() -> None:
    with joined(PlainExchange()):
        run = init(leaves=4)
        model = run.model(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)))
        run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        whole = data(37)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model[2].eval()  # a layer that the script keeps so
        sizes = []
        for evaluation in run.evaluate(whole, batch_size=20):
            for x, y in evaluation:
                assert not model.training
                assert not torch.is_grad_enabled()
                sizes.append(len(x))
                run.report(loss=nn.functional.cross_entropy(model(x), y), first=float(x[0, 0]))
        assert max(sizes) == 5
        assert sum(sizes) == 37
        assert torch.is_grad_enabled()
        assert (model.training, model[1].training, model[2].training) == (True, True, False)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.eval()
        with torch.no_grad():
            expected = float(nn.functional.cross_entropy(model(whole.tensors[0]), whole.tensors[1]))
        assert run.mean("loss") == pytest.approx(expected, rel=1e-5)
        assert evaluation.metrics["loss"] == run.mean("loss")


def test_an_evaluation_that_is_left_early_is_told() -> None:
    with joined(PlainExchange()):
        run = init(leaves=4)
        model = run.model(nn.Linear(6, 3))
        run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        evaluations = run.evaluate(TensorDataset(torch.zeros(8, 6)), batch_size=4)
        batches = iter(next(evaluations))
        next(batches)
        batches.close()  # type: ignore[attr-defined]  # as leaving the loop does
        with pytest.raises(UsageError, match="evaluation was left unfinished"):
            next(evaluations)
        assert torch.is_grad_enabled()


def test_a_broadcast_has_a_bound_and_takes_what_travels() -> None:
    with joined(PlainExchange()):
        run = init(leaves=4)
        model = run.model(nn.Linear(6, 3))
        with pytest.raises(UsageError, match="belongs after"):
            run.broadcast(1)
        run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        assert run.broadcast({"a": (1, {2})}) == {"a": (1, {2})}
        assert run.broadcast(lambda: 3) == 3
        with pytest.raises(UsageError, match="takes up to"):
            run.broadcast(bytes(2 << 20))
        assert callable(run.close)
