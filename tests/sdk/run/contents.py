"""What a PyTorch script may contain, and what becomes of it: each row is a little script that the tests run, and the table of
``docs/scripts.md`` is made of what they saw. ``python -m tests.sdk.run.contents`` writes it there."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from dmi.errors import DmiError
from dmi.run import exchange
from dmi.run.begin import init
from dmi.run.plain import PlainExchange
from dmi.run.run import Run

Act = Callable[..., object]


def data(samples: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(
        torch.randn(samples, 6, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    )


class Net(nn.Module):
    """Two layers, a buffer, and what ``each`` does in forward."""

    def __init__(self, each: Callable[["Net", torch.Tensor], object] = lambda net, x: None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("cache", None, persistent=False)
        self.each = each

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.each(self, x)
        assert isinstance(self.seen, torch.Tensor)
        y: torch.Tensor = self.second(torch.relu(self.first(x))) * (1 + self.seen.mean())
        return y


@dataclass
class Script:
    """A training of two epochs with what is odd about it. ``act`` is called with the model and the optimizer at its place."""

    model: Callable[[], nn.Module] = Net
    build: Callable[[nn.Module], torch.optim.Optimizer] = lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9
    )
    dataset: Callable[[], Any] = data
    steps: dict[str, Any] | None = None
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None
    clip_norm: float | None = None
    begin: Act = lambda run, model, optimizer: None
    """After ``run.optimizer``."""
    leaf: Act = lambda run, model, optimizer: None
    """In each leaf, after ``backward``."""
    before: Act = lambda run, model, optimizer: None
    """Before ``optimizer.step()``."""
    between: Act = lambda run, model, optimizer: None
    epoch: Act = lambda run, model, optimizer: None
    end: Act = lambda run, model, optimizer: None

    def train(self, run: Run) -> nn.Module:
        """Run it; gives the model."""
        model = run.model(self.model())
        optimizer = run.optimizer(self.build(model), clip_norm=self.clip_norm)
        self.begin(run, model, optimizer)
        dataset, options = self.dataset(), {"batch_size": 16} | (self.steps or {})
        for _ in run.epochs(2):
            for step in run.steps(dataset, **options):
                for batch in step:
                    loss = (self.loss or _loss)(model, batch)
                    loss.backward()
                    self.leaf(run, model, optimizer)
                    run.report(loss=loss)
                self.before(run, model, optimizer)
                optimizer.step()
                self.between(run, model, optimizer)
            self.epoch(run, model, optimizer)
        self.end(run, model, optimizer)
        run.close()
        return model


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
    return nn.functional.cross_entropy(model(x), y)


@dataclass
class Row:
    """``what`` stands in the table; ``hint`` is a part of the line with which it is refused, None for what works."""

    what: str
    script: Script
    hint: str | None = None


class Items(Dataset[Any]):
    """Samples that ``item`` makes of their places."""

    def __init__(self, samples: int, item: Callable[[int], Any]) -> None:
        self._samples, self._item = samples, item

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, place: int) -> Any:
        return self._item(place)


class Stream(IterableDataset[Any]):
    """No length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


X, Y = data().tensors


def noise(place: int) -> Any:
    return X[place] + 0.1 * torch.randn(6), Y[place]


def held() -> Dataset[Any]:
    own = np.random.default_rng(0)
    return Items(48, lambda place: (X[place] + float(own.standard_normal()), Y[place]))


def replace_seen(net: Net, x: torch.Tensor) -> None:
    net.seen = 0.9 * net.seen + 0.1 * x.mean().detach()  # type: ignore[operator]


def write_seen(net: Net, x: torch.Tensor) -> None:
    net.seen.mul_(0.9).add_(0.1 * x.mean().detach())  # type: ignore[operator]


def grow_seen(net: Net, x: torch.Tensor) -> None:
    net.seen = torch.zeros(2)[:1].repeat(2)


def fill_cache(net: Net, x: torch.Tensor) -> None:
    if getattr(net, "cache", None) is None:
        net.cache = torch.ones(1)


def set_seen(run: Run, model: Any, optimizer: Any) -> None:
    with torch.no_grad():
        model.seen.fill_(0.3)


def freeze_first(model: Any) -> torch.optim.Optimizer:
    model.first.requires_grad_(requires_grad=False)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def thaw(run: Run, model: Any, optimizer: Any) -> None:
    model.first.requires_grad_(requires_grad=True)


def rate(value: Any) -> Act:
    def set_rate(run: Run, model: Any, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = value

    return set_rate


def state(value: Any) -> Act:
    def put(run: Run, model: Any, optimizer: Any) -> None:
        run.state["best"] = value

    return put


def scheduled(make: Callable[[torch.optim.Optimizer], Any], *, told: bool = True, measured: bool = False) -> Script:
    made: list[Any] = []

    def begin(run: Run, model: Any, optimizer: torch.optim.Optimizer) -> None:
        made[:] = [run.scheduler(make(optimizer)) if told else make(optimizer)]

    def epoch(run: Run, model: Any, optimizer: Any) -> None:
        made[0].step(run.mean("loss")) if measured else made[0].step()

    return Script(begin=begin, epoch=epoch)


ONE: list[int] = []


def scheduled_before() -> Script:
    made: list[Any] = []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        made[:] = [lr_scheduler.ExponentialLR(optimizer, 0.5)]
        return optimizer

    return Script(
        build=build,
        begin=lambda run, model, optimizer: run.scheduler(made[0]),
        epoch=lambda run, model, optimizer: made[0].step(),
    )


def averaged() -> Script:
    made: list[AveragedModel] = []

    def begin(run: Run, model: nn.Module, optimizer: Any) -> None:
        made[:] = [run.keep(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)))]

    return Script(begin=begin, between=lambda run, model, optimizer: made[0].update_parameters(model))


def evaluated() -> Script:
    def epoch(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in run.evaluate(data(30), batch_size=16):
            for x, y in step:
                run.report(right=(model(x).argmax(1) == y).float().mean())
        optimizer.param_groups[0]["lr"] = 0.1 * run.mean("right")

    return Script(epoch=epoch)


def told_apart() -> Script:
    def epoch(run: Run, model: Any, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = run.broadcast(lambda: 0.05)

    return Script(epoch=epoch)


def with_critic(*, kept: bool, where: str) -> Script:
    critic = nn.Linear(3, 1)
    own = torch.optim.SGD(critic.parameters(), lr=0.1)

    def begin(run: Run, model: nn.Module, optimizer: Any) -> None:
        if kept:
            run.keep(critic)
            run.keep(own)

    def train(run: Run, model: nn.Module, optimizer: Any) -> None:
        own.zero_grad()
        critic(torch.ones(1, 3)).sum().backward()
        own.step()

    script = Script(begin=begin)
    setattr(script, where, train)
    return script


def closure(run: Run, model: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step(lambda: 0.0)


def hook(run: Run, model: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.register_step_post_hook(lambda *_: None)


def other_optimizer(run: Run, model: nn.Module, optimizer: Any) -> None:
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def by_hand(run: Run, model: nn.Module, optimizer: Any) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.clamp_(-0.01, 0.01)


def add_group(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def write_parameter(run: Run, model: Any, optimizer: Any) -> None:
    with torch.no_grad():
        model.first.weight.mul_(0.5)


def clip_weights(run: Run, model: Any, optimizer: Any) -> None:
    model.first.weight.data.clamp_(-0.01, 0.01)


def write_by_numpy(run: Run, model: Any, optimizer: Any) -> None:
    model.first.weight.detach().numpy()[0] += 1.0


def clip_by_hand(run: Run, model: nn.Module, optimizer: Any) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.clamp_(-0.01, 0.01)


def autocast(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return _loss(model, batch)


def scaled(*, enabled: bool) -> Script:
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        found: torch.Tensor = scaler.scale(_loss(model, batch))
        return found

    return Script(loss=loss)


def twice_backward(model: nn.Module, batch: Any) -> torch.Tensor:
    x, _ = batch
    model(x).square().mean().backward()
    return _loss(model, batch)


def batchnorm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))


def with_name(place: int) -> Any:
    return {"x": X[place], "y": Y[place], "name": f"sample {place}"}


def ragged(place: int) -> Any:
    return X[place][: 1 + place % 6], Y[place]


def padded(samples: list[Any]) -> Any:
    return torch.stack([nn.functional.pad(x, (0, 6 - len(x))) for x, _ in samples]), torch.stack(
        [y for _, y in samples]
    )


def lengths(samples: int = 48) -> list[list[int]]:
    """Batches of about one length each, as a sampler that sorts by length gives."""
    order = sorted(range(samples), key=lambda place: (place % 6, place))
    return [order[start : start + 16] for start in range(0, samples, 16)]


ROWS = [
    Row("dropout, BatchNorm, any layer of `torch.nn`", Script(model=batchnorm)),
    Row("a buffer that `forward` writes in place", Script(model=lambda: Net(write_seen))),
    Row("a buffer that `forward` replaces (`self.ema = ...`)", Script(model=lambda: Net(replace_seen))),
    Row("a buffer that the script writes between the steps", Script(between=set_seen)),
    Row("a cache in a buffer with `persistent=False`", Script(model=lambda: Net(fill_cache))),
    Row("a buffer whose shape changes", Script(model=lambda: Net(grow_seen)), "buffer seen is float32[2] now"),
    Row("a buffer that is written after the last step", Script(end=set_seen)),
    Row("frozen layers (`requires_grad_(False)`)", Script(build=freeze_first)),
    Row("layers that thaw in mid-training", Script(build=freeze_first, epoch=thaw)),
    Row("`add_param_group` after `run.optimizer`", Script(begin=add_group), "add_param_group after run.optimizer"),
    Row("a parameter that is written in place", Script(between=write_parameter), "was written in place"),
    Row("the same through `parameter.data`", Script(between=clip_weights), "was written in place"),
    Row("the same through NumPy", Script(between=write_by_numpy), "was written in place, past torch"),
    Row("`loss.backward()` more than once in a leaf", Script(loss=twice_backward)),
    Row("`torch.autocast` with bfloat16", Script(loss=autocast)),
    Row("`GradScaler(enabled=False)`", scaled(enabled=False)),
    Row("`GradScaler`", scaled(enabled=True), "train in bfloat16 or float32"),
    Row("clipping by `run.optimizer(..., clip_norm=1.0)`", Script(clip_norm=1.0)),
    Row(
        "`clip_grad_norm_`",
        Script(leaf=lambda run, model, optimizer: nn.utils.clip_grad_norm_(model.parameters(), 1.0)),
        "clip_norm=",
    ),
    Row(
        "`clip_grad_value_`",
        Script(leaf=lambda run, model, optimizer: nn.utils.clip_grad_value_(model.parameters(), 1.0)),
        "clip_norm=",
    ),
    Row("a gradient that is changed by hand", Script(leaf=by_hand), "was changed inside a leaf"),
    Row("the same through `grad.data`", Script(leaf=clip_by_hand), "was changed inside a leaf"),
    Row(
        "`optimizer.zero_grad()` at the beginning of a leaf, or between the steps",
        Script(between=lambda run, model, optimizer: optimizer.zero_grad()),
    ),
    Row(
        "`optimizer.zero_grad()` after `backward`",
        Script(leaf=lambda run, model, optimizer: optimizer.zero_grad()),
        "zero_grad() inside a leaf",
    ),
    Row(
        "`model.zero_grad()` after `backward`",
        Script(leaf=lambda run, model, optimizer: model.zero_grad()),
        "leave zero_grad() out",
    ),
    Row(
        "`optimizer.step()` inside the leaves",
        Script(leaf=lambda r, m, optimizer: optimizer.step()),
        "behind the inner loop",
    ),
    Row("`optimizer.step(closure)`", Script(before=closure), "step(closure)"),
    Row("step hooks", Script(begin=hook), "step hook"),
    Row(
        "`optimizer.state_dict()`",
        Script(epoch=lambda r, m, optimizer: optimizer.state_dict()),
        "run.export('model.pt')",
    ),
    Row(
        "every optimizer of `torch.optim` but LBFGS and SparseAdam",
        Script(build=lambda m: torch.optim.AdamW(m.parameters())),
    ),
    Row(
        "LBFGS",
        Script(build=lambda model: torch.optim.LBFGS(model.parameters())),
        "use SGD, Adam or Muon",
    ),
    Row("another optimizer for the same parameters", Script(leaf=other_optimizer), "parameter groups"),
    Row("a module with its own optimizer beside the model", with_critic(kept=False, where="leaf"), "nn.ModuleDict"),
    Row("the same, given to `run.keep` and trained between the steps", with_critic(kept=True, where="between")),
    Row("a scheduler given to `run.scheduler`", scheduled(lambda o: lr_scheduler.StepLR(o, 1))),
    Row(
        "`ReduceLROnPlateau` given to `run.scheduler`",
        scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o), measured=True),
    ),
    Row("a scheduler that was made before `run.optimizer`", scheduled_before()),
    Row(
        "a scheduler that the run does not know",
        scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o), told=False, measured=True),
        "run.scheduler(...)",
    ),
    Row("a learning rate of any number type", Script(epoch=rate(np.float32(0.05)))),
    Row("a learning rate in a 0-d tensor", Script(epoch=rate(torch.tensor(0.05)))),
    Row("a learning rate that is no number", Script(epoch=rate(lambda: 0.1)), "lr of parameter group 0"),
    Row(
        "numbers, text, arrays, tensors, lists, dicts, sets in `run.state`",
        Script(epoch=state({"a": {1}, "b": np.ones(2)})),
    ),
    Row("anything else in `run.state`", Script(epoch=state(nn.Linear(1, 1))), "run.state['best']: a torch.nn"),
    Row("one thing at two places of `run.state`", Script(epoch=state([ONE, ONE])), "is the same list"),
    Row("averaged weights given to `run.keep`", averaged()),
    Row("evaluation with `run.evaluate`, and what follows from it", evaluated()),
    Row("a decision of the lead's, told by `run.broadcast`", told_apart()),
    Row("random augmentation in `__getitem__` (torch, numpy, random)", Script(dataset=lambda: Items(48, noise))),
    Row("a data set with a generator of its own", Script(dataset=held), "generator of its own"),
    Row("dicts, text, NumPy arrays and numbers in samples", Script(dataset=lambda: Items(48, with_name))),
    Row("`Subset` and any other map-style data set", Script(dataset=lambda: Subset(data(), range(40)))),
    Row("a `DataLoader` in place of the data set", Script(dataset=lambda: DataLoader(data(), 16, shuffle=True))),
    Row(
        "a `DataLoader` with a generator",
        Script(dataset=lambda: DataLoader(data(), 16, shuffle=True, generator=torch.Generator())),
        "DataLoader with generator",
    ),
    Row("an `IterableDataset`", Script(dataset=Stream), "map-style dataset"),
    Row("an empty data set", Script(dataset=lambda: data(0)), "is empty"),
    Row(
        "`drop_last` that drops everything",
        Script(dataset=lambda: data(10), steps={"drop_last": True}),
        "no step is left",
    ),
    Row(
        "samples of different lengths, with `collate_fn`",
        Script(dataset=lambda: Items(48, ragged), steps={"collate_fn": padded}),
    ),
    Row("samples of different lengths, without", Script(dataset=lambda: Items(48, ragged)), "collate_fn="),
    Row(
        "weighted sampling (`sampler=WeightedRandomSampler(...)`)",
        Script(steps={"sampler": WeightedRandomSampler([1.0] * 24 + [3.0] * 24, 48)}),
    ),
    Row("a sampler that gives whole batches", Script(steps={"sampler": lengths(), "batch_size": None})),
    Row(
        "`DistributedSampler`",
        Script(steps={"sampler": torch.utils.data.DistributedSampler(data(), 1, 0)}),
        "shuffle=True",
    ),
    Row("loader processes (`workers=2`)", Script(dataset=lambda: Items(48, noise), steps={"workers": 2})),
    Row(
        "leaves of one sample with BatchNorm",
        Script(model=batchnorm, dataset=lambda: data(35)),
        "drop_last=True",
    ),
    Row(
        "a loss that is no number",
        Script(loss=lambda model, batch: _loss(model, batch) * torch.nan),
        "lower the learning rate",
    ),
    Row(
        "`model.to(...)`, `.half()` after `run.model`",
        Script(begin=lambda run, model, optimizer: model.double()),
        "do that before run.model",
    ),
]


class Backwards(PlainExchange):
    """Computes the leaves in another order, on another number of shards."""

    def __init__(self) -> None:
        super().__init__(shards=3)

    def begin(self, *arguments: Any) -> None:
        super().begin(*arguments)
        self._next = iter(reversed(list(self._next)))


@contextmanager
def joined(made: PlainExchange) -> Iterator[None]:
    """A run in this process takes part through ``made``."""
    exchange.provide(lambda: made)
    try:
        yield
    finally:
        exchange._provider.clear()
        torch.use_deterministic_algorithms(mode=False)


def outcome(script: Script, made: PlainExchange) -> list[torch.Tensor] | str:
    """The weights and buffers, or the line with which it was refused."""
    with joined(made), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = script.train(init(seed=0, leaves=4))
        except DmiError as error:
            return str(error)
        return [value.detach().clone() for value in model.state_dict().values()]


def table() -> str:
    """In Markdown, of what the scripts come to now."""
    lines = ["| a script with | what becomes of it |", "|---|---|"]
    for row in ROWS:
        found = outcome(row.script, PlainExchange())
        told = f"refused: *{found.replace('|', ' ')}*" if isinstance(found, str) else "works"
        lines.append(f"| {row.what} | {told} |")
    return "\n".join(lines)


BEGIN, END = "<!-- what the tests saw -->", "<!-- end -->"
DOCS = Path(__file__).parents[3] / "docs" / "scripts.md"


def main() -> None:
    """Put the table into its place."""
    text = DOCS.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    DOCS.write_text(f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
