"""A plain run against a loop in torch alone, and against itself split over several shards."""

import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dmi.run import exchange
from dmi.run.begin import init
from dmi.run.plain import PlainExchange
from dmi.run.run import Run
from dmi_protocol.training.tree import leaf_range
from dmi_tensor.optimizers import ELEMENTWISE, REFUSED, WHOLE
from dmi_tensor.random_streams import permutation, sow_leaf

LEAVES, BATCH = 4, 20
MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    yield
    exchange._provider.clear()
    torch.use_deterministic_algorithms(mode=False)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def train(
    run: Run, module: nn.Module, make: MakeOptimizer, clip_norm: float | None = None, epochs: int = 1
) -> nn.Module:
    model = run.model(module)
    optimizer = run.optimizer(make(model.parameters()), clip_norm=clip_norm)
    for _ in run.epochs(epochs):
        for step in run.steps(data(), batch_size=BATCH):
            for x, y in step:
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                run.report(loss=loss)
            optimizer.step()
    return model


def tree(parts: list[torch.Tensor]) -> torch.Tensor:
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def by_hand(seed: int) -> nn.Module:
    """The same three steps without any DMI arithmetic: torch's autograd, a written-out tree, torch's fused SGD."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    x, y = data().tensors
    order = permutation(seed, 0, 50)
    for step, start in enumerate(range(0, 50, BATCH)):
        batch = order[start : start + BATCH]
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        grads: list[list[torch.Tensor]] = []
        buffers: list[dict[str, torch.Tensor]] = []
        for leaf in range(LEAVES):
            places = leaf_range(len(batch), LEAVES, leaf)
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
            optimizer.zero_grad()
            sow_leaf(seed, step, leaf)
            chosen = batch[places.start : places.stop]
            nn.functional.mse_loss(model(x[chosen]), y[chosen]).backward()
            weight = len(places) / len(batch)
            grads.append([p.grad * weight for p in model.parameters() if p.grad is not None])
            buffers.append({n: b * weight if b.is_floating_point() else b.clone() for n, b in model.named_buffers()})
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = tree([leaf[index] for leaf in grads])
        for name, buffer in model.named_buffers():
            value = tree([leaf[name] for leaf in buffers]) if buffer.is_floating_point() else buffers[0][name]
            buffer.copy_(value)
        optimizer.step()
    return model


def test_an_independent_loop_in_plain_torch_agrees_bit_for_bit() -> None:
    ours = train(init(seed=4, leaves=LEAVES), network(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    theirs = by_hand(4)
    for (name, mine), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(mine, other), name


def digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for value in module.state_dict().values():
        sha.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def square() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))


@pytest.mark.parametrize("name", sorted(ELEMENTWISE | WHOLE))
def test_every_optimizer_gives_the_same_bits_on_any_number_of_shards(name: str) -> None:
    found = set()
    for shards in (1, 2, 3):
        exchange.provide(lambda shards=shards: PlainExchange(shards))  # type: ignore[misc]
        run = init(seed=1, leaves=4)
        found.add(digest(train(run, square(), lambda p: getattr(torch.optim, name)(p, lr=0.01), clip_norm=0.5)))
    assert len(found) == 1
    torch.manual_seed(1)
    assert digest(square()) not in found


def test_every_class_of_torch_optim_is_known_or_refused() -> None:
    known = {
        name
        for name in dir(torch.optim)
        if isinstance(getattr(torch.optim, name), type)
        and issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
    }
    assert known - {"Optimizer"} == ELEMENTWISE | WHOLE | REFUSED.keys()


def test_the_seed_matters_and_the_same_seed_repeats() -> None:
    def adam(p: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(p, lr=0.01)

    def once(seed: int) -> str:
        return digest(train(init(seed=seed, leaves=4), network(), adam))

    assert once(1) == once(1) != once(2)


def test_half_precision_gradients_are_summed_in_float32() -> None:
    run = init(seed=0, leaves=8)
    model = run.model(nn.Linear(6, 1, bias=False).to(torch.bfloat16))
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    before = model.weight.detach().clone()
    grads = []
    for step in run.steps(data(), batch_size=50, shuffle=False):
        for x, y in step:
            nn.functional.mse_loss(model(x.to(torch.bfloat16)), y.to(torch.bfloat16)).backward()
            assert model.weight.grad is not None
            grads.append(model.weight.grad.float() * (len(x) / 50))
        optimizer.step()
    expected = tree(grads).to(torch.bfloat16)
    assert torch.equal(model.weight, before - expected)


def test_absent_gradients_are_skipped_and_not_decayed() -> None:
    run = init(seed=0, leaves=4)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.frozen = nn.Linear(6, 1), nn.Linear(6, 1), nn.Linear(6, 1)
            self.frozen.requires_grad_(requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.used(x)
            return out

    model = run.model(Two())
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in run.steps(data(), batch_size=BATCH):
        for x, y in step:
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert not torch.equal(after["used.weight"], before["used.weight"])
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("used"))


def test_a_constant_buffer_stays_and_random_streams_are_per_leaf() -> None:
    run = init(seed=0, leaves=4)
    module = nn.Linear(6, 1)
    module.register_buffer("mask", torch.full((3,), torch.finfo(torch.float32).min))
    model = run.model(module)
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    draws: list[tuple[float, float, float]] = []
    for step in run.steps(data(), batch_size=BATCH):
        for x, y in step:
            draws.append((float(torch.rand(())), float(np.random.rand()), random.random()))
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    assert torch.equal(dict(model.named_buffers())["mask"], torch.full((3,), torch.finfo(torch.float32).min))
    assert len(set(draws)) == len(draws)


def test_metrics_are_means_over_samples() -> None:
    run = init(seed=0, leaves=4)
    model = run.model(nn.Linear(6, 1))
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    for _ in run.epochs(1):
        for step in run.steps(data(), batch_size=BATCH, shuffle=False):
            for x, y in step:
                nn.functional.mse_loss(model(x), y).backward()
                run.report(first=x[:, 0].mean())
            optimizer.step()
            seen.append(step.metrics["first"])
        whole = data().tensors[0]
        assert seen[0] == pytest.approx(float(whole[:BATCH, 0].mean()), abs=1e-6)
        assert seen[-1] == pytest.approx(float(whole[40:, 0].mean()), abs=1e-6)
        assert run.mean("first") == pytest.approx(float(whole[:, 0].mean()), abs=1e-6)


def test_the_export_can_be_loaded_by_torch(tmp_path: Path) -> None:
    run = init(seed=0, leaves=4)
    model = train(run, network(), lambda p: torch.optim.Adam(p, lr=0.01))
    run.export(tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    fresh = network()
    fresh.load_state_dict(found["model_state_dict"])
    assert digest(fresh) == digest(model)
    optimizer = torch.optim.Adam(fresh.parameters())
    optimizer.load_state_dict(found["optimizer_state_dict"])
    assert len(optimizer.state) == len(list(fresh.parameters()))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_an_export_is_as_readable_as_the_umask_says(name: str, tmp_path: Path) -> None:
    run = init(seed=0, leaves=4)
    train(run, network(), lambda p: torch.optim.SGD(p, lr=0.01))
    before = os.umask(0o027)
    try:
        run.export(tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_large_tensors_are_cut_and_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for shards in (1, 3):
        exchange.provide(lambda shards=shards: PlainExchange(shards))  # type: ignore[misc]
        run = init(seed=2, leaves=4)
        model = train(
            run, nn.Sequential(nn.Linear(6, 200_000), nn.Linear(200_000, 1)), lambda p: torch.optim.Adam(p, lr=0.01)
        )
        found.add(digest(model))
    assert len(found) == 1
