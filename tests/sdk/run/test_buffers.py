"""Buffers are part of the model, however they are written; layers thaw, and rates are numbers, as in plain torch."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmi.errors import UsageError
from dmi.run.begin import init
from dmi.run.plain import PlainExchange
from dmi_tensor.checkpoint import Model, part_of
from tests.sdk.run.contents import Backwards, Net, data, freeze_first, joined, replace_seen, write_seen

Act = Callable[[Any], None]


def nothing(model: Any) -> None:
    pass


def trained(
    exchange: PlainExchange,
    model: Callable[[], nn.Module] = Net,
    before_epoch: Callable[[int, Any, Any], None] = lambda epoch, model, optimizer: None,
    after_step: Act = nothing,
    build: Callable[[Any], torch.optim.Optimizer] = lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
) -> dict[str, torch.Tensor]:
    with joined(exchange):
        run = init(seed=0, leaves=4)
        made = run.model(model())
        optimizer = run.optimizer(build(made))
        for epoch in run.epochs(4):
            before_epoch(epoch, made, optimizer)
            for step in run.steps(data(), batch_size=14, shuffle=False):
                for x, y in step:
                    nn.functional.cross_entropy(made(x), y).backward()
                optimizer.step()
                after_step(made)
        run.close()
        return _as_the_servers_have_it(exchange)


def _as_the_servers_have_it(exchange: PlainExchange) -> dict[str, torch.Tensor]:
    """What an export of the job would have."""
    shards = exchange._shards
    return Model([part_of(shard, i, len(shards), exchange._step, b"") for i, shard in enumerate(shards)]).tensors()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_buffer_that_is_replaced_is_one_that_is_written() -> None:
    written, replaced = (
        trained(PlainExchange(), lambda: Net(write_seen)),
        trained(PlainExchange(), lambda: Net(replace_seen)),
    )
    assert written["seen"] != 0
    assert same(written, replaced)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("exchange", [PlainExchange, Backwards])
def test_what_the_script_writes_between_the_steps_stays_bit_for_bit(
    value: float, exchange: Callable[[], PlainExchange]
) -> None:
    wanted = torch.cat([torch.tensor([value]), torch.randn(63, generator=torch.Generator().manual_seed(1))])
    found: list[torch.Tensor] = []

    class Factor(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(64))

    def write(epoch: int, model: Any, optimizer: Any) -> None:
        model.factor.copy_(wanted * (epoch + 1))

    def look(model: Any) -> None:
        found.append(model.factor.clone())

    last = trained(exchange(), Factor, write, look)
    assert torch.equal(torch.stack(found), torch.stack([wanted * (epoch + 1) for epoch in range(4) for _ in range(4)]))
    assert torch.equal(last["factor"], wanted * 4)


def test_layers_that_thaw_or_freeze_do_as_in_plain_torch() -> None:
    def at(epoch: int, model: Any, optimizer: Any) -> None:
        model.first.requires_grad_(requires_grad=epoch in {1, 3})

    found = trained(PlainExchange(), before_epoch=at, build=freeze_first)
    torch.manual_seed(0)
    with joined(PlainExchange()):
        init(seed=0, leaves=4)
        model = Net()
    optimizer = freeze_first(model)
    whole = data()
    for epoch in range(4):
        at(epoch, model, optimizer)
        for start in range(0, len(whole), 14):
            x, y = whole[start : start + 14]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def set_to(value: Any) -> Callable[[int, Any, Any], None]:
    def put(epoch: int, model: Any, optimizer: Any) -> None:
        if epoch == 1:
            optimizer.param_groups[0]["lr"] = value

    return put


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5]), np.array(0.5), Fraction(1, 2)]
)
def test_a_rate_is_a_number_whatever_its_type(value: Any) -> None:
    expected = trained(PlainExchange(), before_epoch=set_to(0.5))
    assert same(trained(PlainExchange(), before_epoch=set_to(value)), expected)
    assert not same(trained(PlainExchange()), expected)


@pytest.mark.parametrize("value", [Fraction(1, 3), Decimal("0.5"), torch.ones(2), lambda: 0.5, 1j])
def test_a_rate_that_no_number_is_exactly_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="lr of parameter group 0 is"):
        trained(PlainExchange(), before_epoch=set_to(value))
