"""A training as it goes on: the phases of a step, and where whoever goes on from it comes in. A ``Run`` (``run.py``) is its
face."""

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dmi.errors import NonFiniteLossError, UsageError
from dmi.run import beside
from dmi.run.exchange import Begun, Exchange
from dmi.run.kept import Kept, Snapshot, Things
from dmi.run.model import Model
from dmi.run.position import Given, Position
from dmi.run.state import State, packed
from dmi_protocol.training.tree import leaf_sizes
from dmi_tensor import fingerprint, values
from dmi_tensor.optimizers import OptimizerRefusedError, hyperparameters, put_back, tensors_kept
from dmi_tensor.random_streams import sow_leaf, sow_step
from dmi_tensor.tree_sum import Share

_DATA_SETS = 4
"""So many are known by their digest at a time."""


class Training:
    """See the module, ``steps.Leaves`` and ``guards.Watched``. The script's module, optimizer and model come later."""

    def __init__(self, exchange: Exchange, seed: int, leaves: int) -> None:
        self.exchange = exchange
        self._process = os.getpid()
        self.seed = seed
        self.leaves = leaves
        self.state = State(self._state_is_read)
        self.module: nn.Module | None = None
        self.optimizer: Optimizer | None = None
        self.model: Model | None = None
        self.things = Things()
        """Schedulers, and what else was given to be kept."""
        self._loops = 0
        """How many loops of ours the script is in."""
        self.is_open = False
        self.step = self.trained = self.rounds = 0
        """Versions that were made: by steps, and by rounds, which change nothing."""
        self.position = Position()
        self.epochs: int | None = None
        self.steps_per_epoch: int | None = None
        self.phase = "between"
        self._samples = 0
        self._leaf_sizes: tuple[int, ...] = ()
        self._hyper = b""
        self.data = ""
        """What the steps of now are taken from."""
        self._seen: deque[tuple[Any, str]] = deque(maxlen=_DATA_SETS)
        self._reported: dict[str, float] = {}
        self._metrics: dict[str, float] = {}
        self.sums: dict[str, tuple[float, int]] = {}
        self._totals: dict[str, tuple[float, int]] = {}
        """Of a leaf of an evaluation."""
        self.kept: Snapshot | None = None
        self.checkpointed = 0
        self._arrived: bytes | None = None
        """What a joiner was told."""
        self.resume: Snapshot | None = None
        """Where to go on, until the script has come there."""
        if extra := exchange.resume():
            self._resume_from(Kept.unpack(extra))

    @contextmanager
    def loop(self) -> Iterator[None]:
        """The script is in one of ours meanwhile."""
        self._loops += 1
        try:
            yield
        finally:
            self._loops -= 1

    def open(self) -> None:
        """Meet the others, once."""
        if self.model is None:
            raise UsageError("call run.model(...) and run.optimizer(...) before run.steps(...)")
        if self.is_open:
            return
        if self._arrived is None:
            self._meet()
        self.is_open = True

    def told_of(self, dataset: Any, order: str) -> str:
        """Length and digest of data, and what else decides which samples a step has: compared between the workers."""
        for known, told in self._seen:
            if known is dataset:
                return told + order
        try:
            facts = fingerprint.data(dataset)
        except fingerprint.UnsteadyDataError as error:
            raise UsageError(str(error)) from None
        told = ", ".join(f"{name} {value}" for name, value in facts)
        self._seen.append((dataset, told))
        return told + order

    def _meet(self) -> None:
        assert self.model is not None
        assert self.optimizer is not None
        self.model.check_untouched()
        facts = [*fingerprint.machine(), fingerprint.weights(self.model.buckets)]
        kept = tensors_kept(self.optimizer)
        self.step = self.exchange.open(self.model.definition, self.model.buckets, facts, kept)
        self.model.mark()

    def come_in(self) -> None:
        """A joiner asks where the others stand as late as it can, and before the script looks at the epoch."""
        if not self.exchange.is_joiner or self.model is None or self._arrived is not None:
            return
        self._meet()
        self._arrived = self.exchange.welcome()
        assert self._arrived is not None
        if self._arrived:
            self._resume_from(Kept.unpack(self._arrived))

    def _state_is_read(self) -> None:
        """The script may take a number from it into a variable of its own, so a joiner has heard by then where it comes in."""
        if self.optimizer is None:
            raise UsageError(
                "run.state is read before run.model(...) and run.optimizer(...): whoever joins the job later has not heard then "
                "what is in it; read it behind them, right before the loop"
            )
        self.come_in()

    def _resume_from(self, kept: Kept) -> None:
        self.resume = snapshot = kept.snapshot
        self.position.go_on_from(None if snapshot is None else snapshot.mark, dict(kept.given))
        self.rounds = kept.rounds
        if snapshot is not None:
            self.trained = snapshot.trained
            self.state.replace(values.unpack(snapshot.state))

    def demand_between(self, what: str) -> None:
        if self.phase != "between":
            raise UsageError(f"{what} belongs between the steps, after optimizer.step()")

    # The phases of a step, called by Step and by the optimizer

    def expected_leaves(self) -> tuple[int, ...]:
        """See ``steps.Leaves``."""
        return self.exchange.expected_leaves()

    def repeat_step(self) -> dict[str, float]:
        """See ``steps.Leaves``."""
        assert self.resume is not None
        if self.resume.data != self.data:
            raise UsageError(f"the job goes on from a step with other data: {self.resume.data}; here: {self.data}")
        sow_step(self.seed, self.trained - 1)
        self.phase = "complete"
        return dict(self.resume.metrics)

    def begin_step(self, samples: int) -> None:
        """See ``steps.Leaves``."""
        if self.phase != "between":
            raise UsageError(f"step {self.trained} is still open: call optimizer.step() once after its inner loop")
        self._samples = samples
        self._begin(leaf_sizes(samples, self.leaves), self.data)

    def _begin(self, sizes: tuple[int, ...], data: str, *, only_lead: bool = False) -> None:
        if os.getpid() != self._process:
            raise UsageError("a process that the script has forked cannot train: leave the run to its parent")
        assert self.model is not None
        assert self.optimizer is not None
        beside.check_schedulers(self.optimizer, self.things.all)
        written = self.model.begin()
        self._hyper, self._leaf_sizes = self._hyperparameters(), sizes
        self.phase = "leaves"
        self.exchange.begin(Begun(self.step, sizes, self._hyper, written, data, only_lead), self.extra)

    def next_leaf(self) -> int | None:
        """See ``steps.Leaves``."""
        return self.exchange.next_leaf()

    def begin_part(self, *stream: int | str) -> None:
        """See ``steps.Leaves``."""
        assert self.model is not None
        self.model.reset()
        self._reported.clear()
        sow_leaf(self.seed, *stream)

    def end_leaf(self, leaf: int, samples: int) -> None:
        """See ``steps.Leaves``."""
        assert self.model is not None
        if not samples:
            self.exchange.contribute(leaf, {})
            return
        weight = samples / self._samples
        is_first = not any(self._leaf_sizes[:leaf])
        shares = self.model.collect(weight, self.exchange.take, is_first=is_first)
        if self._reported:
            metrics = self.exchange.take(self.model.layout.metrics)
            metrics.metrics = {name: (value * weight, weight) for name, value in self._reported.items()}
            shares[self.model.layout.metrics] = metrics
        self.exchange.contribute(leaf, shares)

    def end_step(self) -> dict[str, float]:
        """See ``steps.Leaves``."""
        assert self.model is not None
        self.model.reset()
        sow_step(self.seed, self.trained)
        self._metrics = dict(self.exchange.metrics())
        for name, value in self._metrics.items():
            total, seen = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value * self._samples, seen + self._samples)
        self.phase = "complete"
        return dict(self._metrics)

    def install(self) -> None:
        """``optimizer.step()``."""
        if self.phase != "complete":
            raise UsageError(
                "optimizer.step() belongs after the inner loop, exactly once for each step of run.steps"
                if self.phase == "between"
                else f"optimizer.step() was called inside the leaves of step {self.trained}; move it behind the inner loop"
            )
        if self.resume is not None:
            self._arrive(self.resume)
            return
        if self._hyperparameters() != self._hyper:
            raise UsageError(
                f"hyperparameters changed inside step {self.trained}; change them between optimizer.step() and the next step"
            )
        self._put_in_place()
        self.trained += 1
        self.kept = Snapshot(
            self.position.mark(),
            self.trained,
            self._hyper,
            self.data,
            self._metrics,
            dict(self.sums),
            self.state.packed(),
            self.things.packed(),
        )
        total = None if self.epochs is None or self.steps_per_epoch is None else self.epochs * self.steps_per_epoch
        total = None if total is None else total + self.rounds
        self.exchange.progress(total, self._samples, self._metrics.get("loss"))

    def _put_in_place(self) -> None:
        """The next version is here."""
        assert self.model is not None
        self.model.check_same()
        self.exchange.install()
        self.model.mark()
        self.step += 1
        self.phase = "between"

    def _arrive(self, snapshot: Snapshot) -> None:
        """The step that the job goes on from was done before, and everything is as it was then."""
        assert self.model is not None
        assert self.optimizer is not None
        put_back(self.optimizer, snapshot.hyper)
        self.things.put_back(snapshot.things)
        self.state.replace(values.unpack(snapshot.state))
        self.model.buffers.put_back()
        self.sums, self._metrics = dict(snapshot.sums), dict(snapshot.metrics)
        self.kept, self.resume = snapshot, None
        self.position.arrive()
        self.checkpointed = self.step
        self.phase = "between"

    # Rounds: evaluations and broadcasts, which are steps that change nothing

    def begin_evaluation(self, samples: int, data: str) -> None:
        """See ``steps.Leaves``."""
        self._totals.clear()
        self._begin_round(leaf_sizes(samples, self.leaves), data)

    def _begin_round(self, sizes: tuple[int, ...], data: str, *, only_lead: bool = False) -> None:
        self.demand_between("an evaluation or a broadcast")
        self._begin(sizes, data, only_lead=only_lead)

    def end_part(self, samples: int) -> None:
        """See ``steps.Leaves``."""
        assert self.model is not None
        self.model.buffers.check_unchanged()
        for name, value in self._reported.items():
            total, seen = self._totals.get(name, (0.0, 0))
            self._totals[name] = (total + value * samples, seen + samples)

    def end_evaluated(self, leaf: int, samples: int) -> None:
        """See ``steps.Leaves``."""
        whole = sum(self._leaf_sizes)
        reported = {name: (total / whole, seen / whole) for name, (total, seen) in self._totals.items()}
        self._totals.clear()
        self.exchange.contribute(leaf, self._round_shares(reported, is_first=not any(self._leaf_sizes[:leaf])))

    def _round_shares(
        self, reported: dict[str, tuple[float, float]], value: bytes = b"", *, is_first: bool
    ) -> dict[int, Share]:
        assert self.model is not None
        shares = self.model.written(self.exchange.take) if is_first else {}
        told = self.exchange.take(self.model.layout.metrics)
        told.metrics, told.value = reported, value
        return shares | {self.model.layout.metrics: told}

    def end_evaluation(self) -> dict[str, float]:
        """See ``steps.Leaves``."""
        means = dict(self.exchange.metrics())
        self.sums |= {name: (mean, 1) for name, mean in means.items()}
        self._end_round(values.pack(means))
        return means

    def _end_round(self, value: bytes) -> Given:
        assert self.model is not None
        self.model.reset()
        given = Given(self.rounds, value)
        self.position.end_round(given)
        self.rounds += 1
        self._put_in_place()
        sow_step(self.seed, "round", given.number)
        return given

    def repeat_round(self, given: Given) -> None:
        """It was done before, and is met again."""
        sow_step(self.seed, "round", given.number)

    def tell(self, value: Any, *, was_lead: bool) -> Given:
        """A round in which the lead has all leaves, and gives the value with the first one."""
        self._begin_round((1,) + (0,) * (self.leaves - 1), "a broadcast", only_lead=True)
        while (leaf := self.exchange.next_leaf()) is not None:
            shares: dict[int, Share] = {}
            if leaf == 0:
                if not was_lead and not callable(value):
                    self.exchange.begin_again(
                        "it leads since it asked for the lead's value, and comes back to ask as the lead"
                    )
                told = packed(value() if callable(value) else value, "run.broadcast(...)")
                shares = self._round_shares({}, told, is_first=True)
            self.exchange.contribute(leaf, shares)
        return self._end_round(self.exchange.value())

    def take_over(self) -> None:
        """What the script has written into buffers after its last step becomes a version of its own."""
        assert self.model is not None
        if self.model.buffers.are_written() and self.position.begin_round() is None:
            self.tell(lambda: None, was_lead=True)

    # What the script might do beside it

    @property
    def is_in_step(self) -> bool:
        """See ``guards.Watched``."""
        return self.phase != "between"

    def owns(self, tensor: torch.Tensor) -> bool:
        """See ``guards.Watched``."""
        return self.model is not None and self.model.owns(tensor)

    def check_other_optimizer(self, optimizer: Optimizer) -> None:
        """See ``guards.Watched``."""
        if self._loops:
            beside.check_optimizer(optimizer, self.module, self.things.all, in_step=self.is_in_step)

    def _hyperparameters(self) -> bytes:
        assert self.optimizer is not None
        try:
            return hyperparameters(self.optimizer)
        except OptimizerRefusedError as error:
            raise UsageError(str(error)) from None

    def clear(self) -> None:
        """``optimizer.zero_grad()``: each leaf begins without gradients anyway."""
        assert self.model is not None
        if self.phase == "leaves" and not self.model.gradients.is_empty:
            raise UsageError(
                "zero_grad() inside a leaf, after backward(), would drop what the leaf gives to the step: leave it out, each "
                "leaf begins without gradients"
            )

    # What a script reports and asks

    def report(self, reported: Mapping[str, float | torch.Tensor]) -> None:
        """See ``Run.report``."""
        if self.phase != "leaves":
            raise UsageError("run.report belongs into the inner loop, once for each leaf")
        for name, value in reported.items():
            number = float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
            if name == "loss" and not math.isfinite(number):
                raise NonFiniteLossError(
                    f"the loss is {number} at step {self.trained}: lower the learning rate, or look for a division by zero"
                )
            self._reported[name] = number

    def mean(self, name: str) -> float:
        """See ``Run.mean``."""
        if name not in self.sums:
            raise UsageError(
                f"nothing named {name!r} was reported in this epoch; reported: {sorted(self.sums) or 'nothing'}"
            )
        total, seen = self.sums[name]
        return total / seen

    def extra(self) -> bytes:
        """What a restored run must know beside the tensors; nothing before the first step."""
        given = tuple(self.position.rounds.items())
        return Kept(self.kept, self.rounds, given).pack() if self.kept is not None or given else b""
