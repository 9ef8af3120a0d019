"""What cannot be in a run is refused with one line that names it and its replacement."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from dmi.errors import DmiError, NonFiniteLossError, NotYetError, UsageError
from dmi.run.begin import init
from dmi.run.run import Run

Script = Callable[[Run, nn.Linear, torch.optim.Optimizer], None]


def data() -> TensorDataset:
    return TensorDataset(torch.randn(16, 2), torch.randn(16, 1))


def begin() -> tuple[Run, nn.Linear, torch.optim.Optimizer]:
    run = init(leaves=4)
    model = run.model(nn.Linear(2, 1))
    return run, model, run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))


def in_leaf(act: Callable[[nn.Linear], object]) -> Script:
    def script(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        for step in run.steps(data(), batch_size=8):
            for x, y in step:
                nn.functional.mse_loss(model(x), y).backward()
                act(model)
            optimizer.step()

    return script


def other_optimizer(model: nn.Linear) -> None:
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def write(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight.add_(1)


def step_twice(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for step in run.steps(data(), batch_size=8):
        for x, y in step:
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.step()


def no_step(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for step in run.steps(data(), batch_size=8):
        for x, y in step:
            nn.functional.mse_loss(model(x), y).backward()


def leave_early(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for step in run.steps(data(), batch_size=8):
        for _ in step:
            break
        optimizer.step()


def change_rate(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for step in run.steps(data(), batch_size=8):
        for x, y in step:
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()


def unknown_scheduler(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    in_leaf(lambda _: None)(run, model, optimizer)
    scheduler.step()


def nothing(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for _ in run.steps(data(), batch_size=2):
        pass


def stream(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    for _ in run.steps(Stream(), batch_size=8):
        pass


def model_twice(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    run.model(model)


def optimizer_twice(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    run.optimizer(optimizer)


def not_a_number(run: Run, model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    in_leaf(lambda _: run.report(loss=float("nan")))(run, model, optimizer)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


CASES: list[tuple[str, Script, str]] = [
    ("clip_grad_norm_", in_leaf(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1.0)), "clip_norm="),
    ("clip_grad_value_", in_leaf(lambda m: nn.utils.clip_grad_value_(m.parameters(), 1.0)), "clip_norm="),
    ("GradScaler", in_leaf(lambda m: torch.amp.GradScaler("cpu").scale(torch.ones(()))), "bfloat16"),
    ("a second optimizer", in_leaf(other_optimizer), "another optimizer"),
    ("an in-place write", in_leaf(write), "in place"),
    ("step() inside the leaves", lambda r, m, o: in_leaf(lambda _: o.step())(r, m, o), "behind the inner loop"),
    ("step() twice", step_twice, "exactly once"),
    ("no step()", no_step, "optimizer.step()"),
    ("a loop that is left early", leave_early, "inner loop"),
    ("a rate that changes inside a step", change_rate, "between"),
    ("a scheduler that the run does not know", unknown_scheduler, "run.scheduler"),
    ("a loss that is no number", not_a_number, "learning rate"),
    ("an iterable data set", stream, "map-style"),
    ("more leaves than samples", nothing, "fewer leaves"),
    ("run.model twice", model_twice, "one module"),
    ("run.optimizer twice", optimizer_twice, "parameter groups"),
]


@pytest.mark.parametrize(("script", "hint"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_it_is_refused_in_one_line(script: Script, hint: str) -> None:
    with pytest.raises((UsageError, NonFiniteLossError)) as caught:
        script(*begin())
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"consistency": "ssp:2"}, {"exchange": "peer"}, {"codec": "bf16"}])
def test_what_is_not_built_yet_says_so(option: dict[str, str]) -> None:
    with pytest.raises(NotYetError, match="not built yet"):
        init(**option)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_optimizers_that_cannot_be_are_refused(name: str) -> None:
    run = init(leaves=4)
    model = run.model(nn.Linear(2, 1))
    with pytest.raises(UsageError, match=name):
        run.optimizer(getattr(torch.optim, name)(model.parameters()))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="without parameters"):
        init().model(nn.ReLU())


def test_sparse_gradients_are_refused() -> None:
    run = init(leaves=4)
    model = run.model(nn.Embedding(8, 2, sparse=True))
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="sparse"):
        embed(run, model, optimizer)


def embed(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for step in run.steps(TensorDataset(torch.arange(8)), batch_size=8):
        for (x,) in step:
            model(x).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("leaves", [0, 3, -2])
def test_leaves_are_a_power_of_two(leaves: int) -> None:
    with pytest.raises(DmiError, match="power of two"):
        init(leaves=leaves)


def test_what_the_state_cannot_keep_is_refused_where_it_is_set_and_changes_nothing() -> None:
    run, _, _ = begin()
    run.state["best"] = 1.0
    for put in (
        lambda: run.state.__setitem__("best", nn.Linear(1, 1)),
        lambda: run.state.update(best=print),
        lambda: run.state.setdefault("other", {"deep": [object()]}),
        lambda: run.state.__setitem__("loss", torch.ones(1, requires_grad=True) * 2),
    ):
        with pytest.raises(UsageError, match=r"^run\.state\['(best|other|loss)'\]"):
            put()
    with pytest.raises(UsageError, match="text for its keys"):
        run.state[3] = 1  # type: ignore[index]
    run.state |= {"rate": 0.5}
    assert run.state == {"best": 1.0, "rate": 0.5}


def test_what_was_changed_inside_the_state_is_refused_before_the_next_step() -> None:
    run, model, optimizer = begin()
    run.state["seen"] = [1]
    run.state["seen"].append(object())
    with pytest.raises(UsageError, match=r"run\.state\['seen'\]\[1\]: a object"):
        in_leaf(lambda _: None)(run, model, optimizer)
