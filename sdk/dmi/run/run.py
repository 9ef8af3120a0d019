"""The run that a training script lives in: what it owns advances with the job, whoever computes what."""

import copy
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dmi.errors import NonFiniteLossError, UsageError
from dmi.run.exchange import Arrival, Exchange, provided
from dmi.run.kept import Kept, put_back, replace, states_of
from dmi.run.model import Model, define
from dmi.run.optimizer import adopt, has_scheduler
from dmi.run.publish import checked
from dmi.run.steps import DoneStep, Step, batches, check_dataset, count
from dmi_protocol.cluster.models import is_model_name
from dmi_protocol.training.tree import leaf_sizes
from dmi_tensor import fingerprint
from dmi_tensor.checkpoint import export, named_tensors
from dmi_tensor.optimizers import OptimizerRefusedError, hyperparameters, tensors_kept
from dmi_tensor.random_streams import sow_fetch, sow_leaf, sow_step

Module = TypeVar("Module", bound=nn.Module)
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)
Scheduler = TypeVar("Scheduler", LRScheduler, ReduceLROnPlateau)


class Run:
    """One training, in one process or in many. Made by ``dmi.init`` (``begin.py``)."""

    def __init__(self, exchange: Exchange, seed: int, leaves: int) -> None:
        self._exchange = exchange
        self.seed = seed
        self.leaves = leaves
        self.state: dict[str, Any] = {}
        """A small dict of plain values that is kept with checkpoints; it must be the same on every worker."""
        self._module: nn.Module | None = None
        self._optimizer: Optimizer | None = None
        self._model: Model | None = None
        self._schedulers: list[LRScheduler | ReduceLROnPlateau] = []
        self._opened = False
        self._step = 0
        self._epoch = 0
        self._epochs: int | None = None
        self._steps_per_epoch: int | None = None
        self._phase = "between"
        self._current: Step | None = None
        self._samples = 0
        self._reported: dict[str, float] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._begun = 0
        """The steps of this epoch that were begun."""
        self._kept: Kept | None = None
        self._checkpointed = 0
        self._closed = False
        self._arrived: Arrival | None = None
        """What a joiner was told."""
        extra = exchange.resume()
        self._resume = Kept.unpack(extra) if extra else None
        """Where to go on, until the step that it was taken after has been repeated."""
        if self._resume is not None:
            self._epoch = self._resume.epoch
            replace(self.state, self._resume.state)

    @property
    def is_lead(self) -> bool:
        """True on one worker at a time: the one that prints, evaluates and writes files."""
        return self._exchange.is_lead

    # What the script hands over

    def model(self, module: Module) -> Module:
        """Take the model in; its parameters will live in buckets. Gives the same object."""
        if self._module is not None:
            raise UsageError("run.model was called twice; a run trains one module (put several into one nn.ModuleList)")
        if not any(True for _ in module.parameters()):
            raise UsageError(f"{type(module).__name__} is a model without parameters: there is nothing to train")
        self._module = module
        return module

    def optimizer(self, optimizer: AnyOptimizer, clip_norm: float | None = None) -> AnyOptimizer:
        """Take the optimizer in; its ``step()`` will put the next version in place. Gives the same object.

        ``clip_norm`` bounds the 2-norm of the whole step's gradient.
        """
        if self._module is None:
            raise UsageError("call run.model(...) before run.optimizer(...)")
        if self._optimizer is not None:
            raise UsageError("run.optimizer was called twice; use one optimizer with parameter groups")
        if clip_norm is not None and not clip_norm > 0:
            raise UsageError(f"clip_norm must be a positive number, not {clip_norm}")
        try:
            definition = define(self._module, optimizer, self.leaves, clip_norm)
        except OptimizerRefusedError as error:
            raise UsageError(str(error)) from None
        if any(float(state.get("step", 1)) for state in optimizer.state.values()):
            raise UsageError("the optimizer has already made steps; give run.optimizer a fresh one")
        self._model = Model(self._module, definition)
        self._optimizer = optimizer
        adopt(optimizer, self._install)
        return optimizer

    def scheduler(self, scheduler: Scheduler) -> Scheduler:
        """Take a learning rate scheduler in; its state advances with the job. Gives the same object."""
        if getattr(scheduler, "optimizer", None) is not self._optimizer or self._optimizer is None:
            raise UsageError("run.scheduler takes a scheduler of the optimizer that run.optimizer gave")
        self._schedulers.append(scheduler)
        return scheduler

    # The loops

    def epochs(self, epochs: int) -> Iterator[int]:
        """The numbers of the epochs that are still to be done."""
        self._epochs = epochs
        self._come_in()
        while self._epoch < epochs:
            self._sums.clear()
            self._begun = 0
            yield self._epoch
            self._epoch += 1

    def steps(self, dataset: Any, batch_size: int, *, shuffle: bool = True, drop_last: bool = False) -> Iterator[Step]:
        """The steps of one pass over ``dataset`` (map-style), in batches of ``batch_size`` samples whoever computes.

        The order is a function of the run's seed and the epoch unless ``shuffle`` is false. The last batch is smaller
        unless ``drop_last``.
        """
        check_dataset(dataset, batch_size, self.leaves)
        self._come_in()
        self._open(dataset)
        self._steps_per_epoch = count(len(dataset), batch_size, drop_last=drop_last)
        order = (self.seed, self._epoch) if shuffle else None
        for indices in batches(len(dataset), batch_size, order, drop_last=drop_last):
            self._begun += 1
            if self._resume is not None and self._begun < self._resume.begun:
                continue
            is_done = self._resume is not None and self._begun == self._resume.begun
            step = (DoneStep if is_done else Step)(self, dataset, indices)
            self._current = step
            yield step
            if self._phase != "between":
                raise UsageError(
                    f"step {self._step} was left unfinished: loop over the step to its end, then call optimizer.step() once"
                )

    def _open(self, dataset: Any | None) -> None:
        """``dataset`` is None when the script has no steps."""
        if self._model is None:
            raise UsageError("call run.model(...) and run.optimizer(...) before run.steps(...)")
        if self._opened:
            return
        facts = [] if dataset is None else self._facts_of(dataset)
        if self._arrived is None:
            self._meet(facts)
        else:
            _check_agreed(facts, self._arrived.fingerprint)
        self._opened = True

    def _facts_of(self, dataset: Any) -> list[tuple[str, Any]]:
        try:
            return fingerprint.data(dataset)
        except fingerprint.UnsteadyDataError as error:
            raise UsageError(str(error)) from None

    def _meet(self, facts: Sequence[tuple[str, Any]]) -> None:
        assert self._model is not None
        facts = [*fingerprint.machine(), fingerprint.weights(self._model.buckets), *facts]
        assert self._optimizer is not None
        kept = tensors_kept(self._optimizer)
        self._step = self._exchange.open(self._model.definition, self._model.buckets, facts, kept)
        self._model.mark()

    def _come_in(self) -> None:
        """A joiner asks where the others stand as late as it can, and before the script looks at the epoch."""
        if not self._exchange.is_joiner or self._model is None or self._arrived is not None:
            return
        self._meet([])
        self._arrived = self._exchange.welcome()
        assert self._arrived is not None
        if self._arrived.extra:
            self._resume = Kept.unpack(self._arrived.extra)
            self._epoch = self._resume.epoch
            replace(self.state, self._resume.state)

    # The phases of a step, called by Step and by the optimizer

    def repeat_step(self) -> None:
        """See ``steps.Leaves``."""
        assert self._current is not None
        assert self._resume is not None
        sow_step(self.seed, self._step - 1)
        self._current.metrics = dict(self._resume.metrics)
        self._phase = "complete"

    def begin_step(self, samples: int) -> None:
        """See ``steps.Leaves``."""
        assert self._model is not None
        assert self._optimizer is not None
        if self._phase != "between":
            raise UsageError(f"step {self._step} is still open: call optimizer.step() once after its inner loop")
        if has_scheduler(self._optimizer) and not self._schedulers:
            raise UsageError(
                "a scheduler that the run does not know changes the optimizer; wrap it in run.scheduler(...)"
            )
        self._model.check_untouched()
        self._model.remember_buffers()
        self._hyper = hyperparameters(self._optimizer)
        self._samples = samples
        self._phase = "leaves"
        self._exchange.begin(self._step, leaf_sizes(samples, self.leaves), self._hyper, self._extra)

    def next_leaf(self) -> int | None:
        """See ``steps.Leaves``."""
        return self._exchange.next_leaf()

    def begin_fetch(self, leaf: int) -> None:
        """See ``steps.Leaves``."""
        sow_fetch(self.seed, self._step, leaf)

    def begin_leaf(self, leaf: int) -> None:
        """See ``steps.Leaves``."""
        assert self._model is not None
        self._model.reset()
        self._reported.clear()
        sow_leaf(self.seed, self._step, leaf)

    def end_leaf(self, leaf: int, samples: int) -> None:
        """See ``steps.Leaves``."""
        assert self._model is not None
        if not samples:
            self._exchange.contribute(leaf, {})
            return
        self._model.check_untouched()
        weight = samples / self._samples
        shares = self._model.collect(weight, self._exchange.take)
        if self._reported:
            metrics = self._exchange.take(self._model.layout.metrics)
            metrics.metrics = {name: (value * weight, weight) for name, value in self._reported.items()}
            shares[self._model.layout.metrics] = metrics
        self._exchange.contribute(leaf, shares)

    def end_step(self) -> None:
        """See ``steps.Leaves``."""
        assert self._model is not None
        assert self._current is not None
        self._model.reset()
        sow_step(self.seed, self._step)
        self._current.metrics = dict(self._exchange.metrics())
        for name, value in self._current.metrics.items():
            total, seen = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value * self._samples, seen + self._samples)
        self._phase = "complete"

    def _install(self) -> None:
        if self._phase != "complete":
            raise UsageError(
                "optimizer.step() belongs after the inner loop, exactly once for each step of run.steps"
                if self._phase == "between"
                else f"optimizer.step() was called inside the leaves of step {self._step}; move it behind the inner loop"
            )
        assert self._model is not None
        assert self._optimizer is not None
        assert self._current is not None
        if self._resume is not None:
            self._go_on(self._resume, self._optimizer)
            return
        if hyperparameters(self._optimizer) != self._hyper:
            raise UsageError(
                f"hyperparameters changed inside step {self._step}; change them between optimizer.step() and the next step"
            )
        self._model.check_untouched()
        self._exchange.install()
        self._model.mark()
        self._step += 1
        self._phase = "between"
        self._kept = Kept(
            self._epoch,
            self._begun,
            self._hyper,
            self._current.metrics,
            dict(self._sums),
            copy.deepcopy(self.state),
            states_of(self._schedulers),
        )
        total = None if self._epochs is None or self._steps_per_epoch is None else self._epochs * self._steps_per_epoch
        self._exchange.progress(total, self._samples, self._current.metrics.get("loss"))

    def _go_on(self, kept: Kept, optimizer: Optimizer) -> None:
        """The step that the checkpoint was made after is done, and everything is as it was then."""
        put_back(kept, optimizer, self._schedulers)
        replace(self.state, kept.state)
        self._sums = dict(kept.sums)
        self._kept, self._resume = kept, None
        self._checkpointed = self._step
        self._phase = "between"

    # What a script reports and asks

    def report(self, **values: float | torch.Tensor) -> None:
        """Numbers of this leaf, means over its samples; ``step.metrics`` has their means over the step."""
        if self._phase != "leaves":
            raise UsageError("run.report belongs into the inner loop, once for each leaf")
        for name, value in values.items():
            number = float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
            if name == "loss" and not math.isfinite(number):
                raise NonFiniteLossError(
                    f"the loss is {number} at step {self._step}: lower the learning rate, or look for a division by zero"
                )
            self._reported[name] = number

    def mean(self, name: str) -> float:
        """The mean of a reported number over all samples since the epoch began."""
        if name not in self._sums:
            raise UsageError(
                f"nothing named {name!r} was reported in this epoch; reported: {sorted(self._sums) or 'nothing'}"
            )
        total, seen = self._sums[name]
        return total / seen

    def checkpoint(self) -> None:
        """Keep this version, with the optimizer's and the run's state, once all of its parts are durable.

        ``dmi-node serve NAME --follow JOB --every N`` makes each N-th one a version of a model. A plain run keeps none: it has
        nowhere to go back to but its start.
        """
        if self._phase != "between":
            raise UsageError("run.checkpoint() belongs between steps")
        if self._opened and self._checkpointed != self._step:
            self._exchange.checkpoint(self._step, self._extra)
            self._checkpointed = self._step
            assert self._model is not None
            definition, buckets = self._model.definition, self._model.buckets
            self._exchange.checkpointed(self._step, lambda: named_tensors(definition, buckets))

    def publish(self, name: str, model: str, *, inputs: Sequence[str] = ()) -> None:
        """Make the parameters and buffers of now a version of the model ``name``, which ``dmi-node serve NAME --follow JOB``
        takes as soon as it is there, and ``infer`` and ``models`` know too. Between steps, on every worker; the lead does it.

        ``model`` makes the module without its weights: ``net.py:make``, a file of the job's, or ``module:function``. ``inputs``
        say what goes in where that cannot be found out, as in ``x=float32[N,3,224,224]``. A plain run publishes nothing. The
        versions of a training beyond the last 16 that nobody uses are removed.

        Raises ``UsageError`` inside a step, before the first one, and for what makes no such model; ``OSError`` when the version
        before could not be written.
        """
        if self._phase != "between":
            raise UsageError("run.publish() belongs between steps")
        if self._model is None or not self._opened:
            raise UsageError("run.publish() belongs after the first step: there is nothing to publish yet")
        if not is_model_name(name):
            raise UsageError(f"{name[:80]!r} is no name of a model: letters, digits, '.', '-' and '_'")
        tensors = named_tensors(self._model.definition, self._model.buckets)
        self._exchange.publish(name, self._step, tensors, checked(model), inputs)

    def export(self, path: str | Path) -> None:
        """Write parameters and buffers as they are now: safetensors, or a torch file with a ``.pt`` suffix.

        In a job the file is written on this worker's host, in the worker's own directory unless ``path`` is absolute; it
        stays there when the job has ended, and the job's log says where.
        """
        if self._model is None:
            raise UsageError("call run.model(...) and run.optimizer(...) before run.export(...)")
        path = Path(path)
        wants_state = path.suffix in {".pt", ".pth"} and self._opened
        state = self._exchange.optimizer_state() if wants_state else None
        export(path, named_tensors(self._model.definition, self._model.buckets), state)
        if provided() is not None:
            print(f"exported {path.absolute()}", file=sys.stderr, flush=True)

    def _extra(self) -> bytes:
        """What a restored run must know beside the tensors; nothing before the first step."""
        return b"" if self._kept is None else self._kept.pack()

    def close(self) -> None:
        """The script is over; without a step its weights are those that it began with. Called by whoever runs it."""
        if self._closed:
            return
        self._closed = True
        if self._phase != "between":
            raise UsageError(f"the script ended inside step {self._step}: call optimizer.step() after the inner loop")
        if self._resume is not None:
            where = f"step {self._resume.begun} of epoch {self._resume.epoch}"
            raise UsageError(
                f"the checkpoint was made at {where}, and the script ended without it: has its data changed?"
            )
        self._open(None)
        self._exchange.close(self._step, self._extra())


def _check_agreed(facts: Sequence[tuple[str, Any]], agreed: Sequence[tuple[str, str]]) -> None:
    """Raise ``UsageError`` when the data here is not that of the others."""
    theirs = dict(agreed)
    for name, value in facts:
        if str(value) != theirs.get(name):
            raise UsageError(f"this host and the others differ in {name}: {value} and {theirs.get(name)}")
