"""A run that goes on from any of its checkpoints ends with the bits of the run that was never disturbed."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import TensorDataset

from dmi.errors import UsageError
from dmi.run import exchange
from dmi.run.begin import init
from dmi.run.exchange import Begun
from dmi.run.kept import Kept, Snapshot
from dmi.run.plain import PlainExchange
from dmi.run.position import Given, Mark
from dmi.run.run import Run
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.training.layout import Definition
from dmi_tensor.buckets import Buckets
from dmi_tensor.checkpoint import Part, extra_of, part_of, read_part, restore, write_part
from dmi_tensor.optimizers import ELEMENTWISE, WHOLE

Script = Callable[[Run], nn.Module]


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    yield
    exchange._provider.clear()
    torch.use_deterministic_algorithms(mode=False)


class Keeping(PlainExchange):
    """A process that is alone, keeps its checkpoints as files, and goes on from those that it is given."""

    def __init__(self, directory: Path, parts: Sequence[Part] = (), shards: int = 1) -> None:
        super().__init__(shards)
        self._directory, self._parts = directory, parts
        self.checkpoints: dict[int, list[Part]] = {}
        self.steps: list[int] = []

    def resume(self) -> bytes | None:
        return extra_of(self._parts) if self._parts else None

    def open(self, definition: Definition, buckets: Buckets, fingerprint: Sequence[tuple[str, str]], kept: int) -> int:
        step = super().open(definition, buckets, fingerprint, kept)
        for shard in self._shards if self._parts else ():
            step = restore(shard, self._parts)
            for bucket in shard.buckets:
                if bucket != buckets.layout.metrics:
                    buckets.bucket(bucket).copy_(shard.read(bucket, step))
        return step

    def begin(self, begun: Begun, extra: Callable[[], bytes]) -> None:
        self.steps.append(begun.step)
        super().begin(begun, extra)

    def checkpoint(self, step: int, extra: Callable[[], bytes]) -> None:
        self.checkpoints[step] = []
        for index, shard in enumerate(self._shards):
            path = self._directory / f"{step}-{index}.safetensors"
            write_part(path, part_of(shard, index, self._count, step, extra()))
            self.checkpoints[step].append(read_part(path))


def digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for value in module.state_dict().values():
        sha.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def data(samples: int = 50) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def undisturbed(script: Script, directory: Path, shards: int = 1) -> tuple[str, dict[int, list[Part]]]:
    keeping = Keeping(directory, shards=shards)
    exchange.provide(lambda: keeping)
    run = init(seed=1, leaves=4)
    module = script(run)
    run.close()
    return digest(module), keeping.checkpoints


def gone_on(script: Script, directory: Path, parts: Sequence[Part], shards: int = 1) -> tuple[str, list[int]]:
    keeping = Keeping(directory, parts, shards)
    exchange.provide(lambda: keeping)
    run = init(seed=1, leaves=4)
    module = script(run)
    run.close()
    return digest(module), keeping.steps


def check(script: Script, directory: Path, shards: tuple[int, int] = (1, 1)) -> None:
    expected, checkpoints = undisturbed(script, directory, shards[0])
    steps = range(max(checkpoints))
    assert len(checkpoints) > 1
    for step, parts in checkpoints.items():
        found, done = gone_on(script, directory, parts, shards[1])
        assert found == expected, f"from the checkpoint of step {step}"
        assert done == list(steps[step:])


def square() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))


def one_step(step: Any, model: nn.Module, run: Run, optimizer: torch.optim.Optimizer) -> None:
    for x, y in step:
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        run.report(loss=loss)
    optimizer.step()


@pytest.mark.parametrize("name", sorted(ELEMENTWISE | WHOLE))
@pytest.mark.parametrize("shards", [(1, 1), (3, 2)], ids=str)
def test_every_optimizer_goes_on_on_any_number_of_shards(name: str, shards: tuple[int, int], tmp_path: Path) -> None:
    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(getattr(torch.optim, name)(model.parameters(), lr=0.01), clip_norm=0.5)
        for _ in run.epochs(2):
            for step in run.steps(data(), batch_size=20):
                one_step(step, model, run, optimizer)
                run.checkpoint()
        return model

    check(script, tmp_path, shards)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: StepLR(o, 2, gamma=0.5),
    "milestones": lambda o: MultiStepLR(o, [1, 3, 5], gamma=0.3),
    "cosine": lambda o: CosineAnnealingLR(o, 9),
    "one-cycle": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=10),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_of_each_step_goes_on(kind: str, tmp_path: Path) -> None:
    def script(run: Run) -> nn.Module:
        model = run.model(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)))
        optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=0.01))
        scheduler = run.scheduler(SCHEDULERS[kind](optimizer))
        for _ in run.epochs(3):
            for step in run.steps(data(), batch_size=20):
                one_step(step, model, run, optimizer)
                run.checkpoint()
                scheduler.step()
        return model

    check(script, tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_follows_the_last_step_of_an_epoch_is_done_once(when: str, tmp_path: Path) -> None:
    """Wherever in the epoch's body the checkpoint is asked for."""

    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        scheduler = run.scheduler(ReduceLROnPlateau(optimizer, patience=0))
        run.state.setdefault("epochs", 0)
        for _ in run.epochs(5):
            for step in run.steps(data(), batch_size=20):
                one_step(step, model, run, optimizer)
            if when == "before":
                run.checkpoint()
            scheduler.step(run.mean("loss") + run.state["epochs"])
            run.state["epochs"] += 1
            if when == "after":
                run.checkpoint()
        assert run.state == {"epochs": 5}
        return model

    check(script, tmp_path)


def test_what_was_taken_from_the_state_before_the_loop_goes_on(tmp_path: Path) -> None:
    """A number, and lists and tensors that are changed in place: run.state has what the script's own variables have."""
    seen: set[float] = set()

    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        best, history = run.state.setdefault("best", float("inf")), run.state.setdefault("history", [])
        total = run.state.setdefault("total", torch.zeros(1))
        for epoch in run.epochs(4):
            for step in run.steps(data(), batch_size=20):
                one_step(step, model, run, optimizer)
                total += step.metrics["loss"]
            history.append(epoch)
            if run.mean("loss") < best:
                best = run.state["best"] = run.mean("loss") if epoch else 0.01
            run.checkpoint()
        assert run.state["history"] == history == [0, 1, 2, 3]
        assert run.state["best"] == best == 0.01
        assert run.state["total"] is total
        seen.add(float(total))
        return model

    check(script, tmp_path)
    assert len(seen) == 1


def test_the_metrics_of_the_step_are_there_again(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        seen.append([])
        for _ in run.epochs(2):
            for step in run.steps(data(), batch_size=20):
                one_step(step, model, run, optimizer)
                seen[-1].append(step.metrics["loss"])
                run.checkpoint()
        return model

    check(script, tmp_path)
    whole, *others = seen
    for begun, other in zip(count(1), others, strict=False):
        assert other == whole[begun - 1 :]


class Schedule:
    """One's own, which remembers what it has seen."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": tuple(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def test_rounds_and_what_is_kept_go_on(tmp_path: Path) -> None:
    """Before the first epoch, inside a pass, after it and after the last epoch; from a checkpoint after each of them."""

    def evaluated(run: Run, model: nn.Module) -> float:
        for step in run.evaluate(data(30), batch_size=20):
            for x, y in step:
                run.report(far=nn.functional.mse_loss(model(x), y))
        run.checkpoint()
        return run.mean("far")

    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        scheduler = run.scheduler(ReduceLROnPlateau(optimizer, factor=0.5, patience=0))
        average = run.keep(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
        schedule = run.keep(Schedule())
        first = run.broadcast(torch.rand(()).item())
        run.checkpoint()
        optimizer.param_groups[0]["lr"] = 0.05 + 0.001 * first
        for epoch in run.epochs(2):
            far = evaluated(run, model)
            schedule.seen.append(far)
            for step in run.steps(data(), batch_size=20):
                one_step(step, model, run, optimizer)
                average.update_parameters(model)
                schedule.seen.append(step.metrics["loss"])
                if step.index % 2 == 1 or epoch:
                    optimizer.param_groups[0]["lr"] *= run.broadcast(lambda: 1 - 0.1 * torch.rand(()).item())
                    run.checkpoint()
                    run.state["far"] = torch.tensor([evaluated(run, model)])
                run.checkpoint()
            scheduler.step(evaluated(run, model))
            run.state["rates"] = {**run.state.get("rates", {}), epoch: (optimizer.param_groups[0]["lr"], first)}
        run.state["end"] = evaluated(run, model)
        results = [*schedule.seen, run.state["end"], run.state["rates"][1][0], float(run.state["far"])]
        results += [float(value.sum()) for value in average.module.state_dict().values()]
        model.register_buffer("results", torch.tensor(results, dtype=torch.float64))
        return model

    check(script, tmp_path)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    size = [50]

    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        for _ in run.epochs(1):
            for step in run.steps(data(size[0]), batch_size=20):
                one_step(step, model, run, optimizer)
                run.checkpoint()
        return model

    _, checkpoints = undisturbed(script, tmp_path)
    size[0] = 30
    with pytest.raises(UsageError, match="step 3 of epoch 0, and the script ended without it"):
        gone_on(script, tmp_path, checkpoints[3])


def test_another_number_of_schedulers_is_refused(tmp_path: Path) -> None:
    has_scheduler = [True]

    def script(run: Run) -> nn.Module:
        model = run.model(square())
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        if has_scheduler[0]:
            run.scheduler(StepLR(optimizer, 1))
        for step in run.steps(data(), batch_size=20):
            one_step(step, model, run, optimizer)
            run.checkpoint()
        return model

    _, checkpoints = undisturbed(script, tmp_path)
    has_scheduler[0] = False
    with pytest.raises(UsageError, match="keeps 1 schedulers and other things, and the script gives 0"):
        gone_on(script, tmp_path, checkpoints[1])


def test_what_is_kept_survives_packing() -> None:
    told = ((-1, -1, 1), Given(0, b"told"))
    snapshot = Snapshot(Mark(2, 7), 17, b"hyper", "data", {"loss": 0.5}, {"loss": (1.5, 3)}, b"state", (b"a", b"b"))
    kept = Kept(snapshot, 2, (told,))
    assert Kept.unpack(kept.pack()) == kept


def test_what_no_run_keeps_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="not what a run keeps"):
        Kept.unpack(b"nonsense")
