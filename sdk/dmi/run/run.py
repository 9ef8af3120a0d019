"""The run that a training script lives in: what it owns advances with the job, whoever computes what."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from dmi.errors import UsageError
from dmi.run import guards
from dmi.run.exchange import Exchange, provided
from dmi.run.kept import Keepable
from dmi.run.model import Model, define
from dmi.run.optimizer import adopt
from dmi.run.publish import checked
from dmi.run.source import Collate, understood
from dmi.run.steps import DoneEvaluation, Evaluation, Pass, Step
from dmi.run.training import Training
from dmi_protocol.cluster.models import is_model_name
from dmi_tensor import values
from dmi_tensor.checkpoint import export, named_tensors
from dmi_tensor.optimizers import OptimizerRefusedError

Module = TypeVar("Module", bound=nn.Module)
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)
Scheduler = TypeVar("Scheduler", bound=LRScheduler)
Thing = TypeVar("Thing", bound=Keepable)
Value = TypeVar("Value")


class Run:
    """One training, in one process or in many. Made by ``dmi.init`` (``begin.py``)."""

    def __init__(self, exchange: Exchange, seed: int, leaves: int) -> None:
        self._exchange = exchange
        self._training = Training(exchange, seed, leaves)
        self.seed = seed
        self.leaves = leaves
        self.state = self._training.state
        """A small dict that is kept with the job; it must be the same on every worker. See ``State`` for what it takes."""
        self._closed = False
        guards.watch(self._training)

    @property
    def is_lead(self) -> bool:
        """True on one worker at a time: the one that prints and writes files."""
        return self._exchange.is_lead

    def belongs_to(self, exchange: Exchange) -> bool:
        """Is it this job's?"""
        return self._exchange is exchange

    # What the script hands over

    def model(self, module: Module) -> Module:
        """Take the model in; its parameters will live in buckets. Gives the same object."""
        if self._training.module is not None:
            raise UsageError("run.model was called twice; a run trains one module (put several into one nn.ModuleList)")
        if not any(True for _ in module.parameters()):
            raise UsageError(f"{type(module).__name__} is a model without parameters: there is nothing to train")
        self._training.module = module
        return module

    def optimizer(self, optimizer: AnyOptimizer, clip_norm: float | None = None) -> AnyOptimizer:
        """Take the optimizer in; its ``step()`` will put the next version in place. Gives the same object.

        ``clip_norm`` bounds the 2-norm of the whole step's gradient.
        """
        if self._training.module is None:
            raise UsageError("call run.model(...) before run.optimizer(...)")
        if self._training.optimizer is not None:
            raise UsageError("run.optimizer was called twice; use one optimizer with parameter groups")
        if clip_norm is not None and not clip_norm > 0:
            raise UsageError(f"clip_norm must be a positive number, not {clip_norm}")
        try:
            definition = define(self._training.module, optimizer, self.leaves, clip_norm)
        except OptimizerRefusedError as error:
            raise UsageError(str(error)) from None
        if any(float(state.get("step", 1)) for state in optimizer.state.values()):
            raise UsageError("the optimizer has already made steps; give run.optimizer a fresh one")
        self._training.model = Model(self._training.module, definition)
        self._training.optimizer = optimizer
        adopt(optimizer, self._training.install, self._training.clear)
        return optimizer

    def scheduler(self, scheduler: Scheduler) -> Scheduler:
        """Take a learning rate scheduler in; its state advances with the job. Gives the same object."""
        if getattr(scheduler, "optimizer", None) is not self._training.optimizer or self._training.optimizer is None:
            raise UsageError("run.scheduler takes a scheduler of the optimizer that run.optimizer gave")
        self._training.things.add(scheduler)
        return scheduler

    def keep(self, thing: Thing) -> Thing:
        """Take in anything that remembers something between the steps and can say it: averaged weights, a metric, a schedule of
        one's own, an optimizer that trains another module between the steps. It advances with the job, and whoever joins gets
        what it remembers. Gives the same object.

        ``thing`` has ``state_dict()`` and ``load_state_dict(state)``, and must be given on every worker before the first step.
        Its state is copied at every step. Raises ``UsageError`` for what has no such methods, or a state that cannot travel.
        """
        if not isinstance(thing, Keepable):
            raise UsageError(
                f"run.keep takes what has state_dict and load_state_dict, and a {type(thing).__name__} has not"
            )
        if self._training.is_open:
            raise UsageError("run.keep(...) belongs before the first step")
        self._training.things.add(thing)
        return thing

    # The loops

    def epochs(self, epochs: int) -> Iterator[int]:
        """The numbers of the epochs that are still to be done."""
        self._training.epochs = epochs
        self._training.come_in()
        with self._training.loop():
            while self._training.position.epoch < epochs:
                self._training.sums.clear()
                self._training.position.begin_epoch()
                yield self._training.position.epoch
                self._training.position.epoch += 1
            self._training.position.begin_epoch()

    def steps(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool | None = None,
        drop_last: bool = False,
        collate_fn: Collate | None = None,
        sampler: Iterable[Any] | None = None,
        workers: int = 0,
        prefetch: int = 8,
    ) -> Iterator[Step]:
        """The steps of one pass over ``dataset`` (map-style), in batches of ``batch_size`` samples whoever computes.

        The order is a function of the run's seed and the epoch: shuffled, unless ``shuffle`` is false, or what ``sampler`` gives,
        whose draws from torch, numpy and random follow the seed; it may also give lists, each a whole batch. The last batch is
        smaller unless ``drop_last``. ``collate_fn`` makes a batch of a list of samples, torch's own by default. With ``workers``
        that many processes of this worker fetch ahead, ``prefetch`` leaves each; they see the data set as it was when the pass
        began, and change no bit. A ``DataLoader`` in place of the data set is taken for what it was made of.

        Raises ``UsageError`` for what cannot be dealt to leaves, or kept as it is.
        """
        source = understood(
            dataset,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            collate_fn=collate_fn,
            sampler=sampler,
            workers=workers,
            prefetch=prefetch,
        )
        source.check(self.leaves)
        self._training.come_in()
        self._training.open()
        assert self._training.module is not None
        found = source.batches(self.seed, self._training.position.epoch)
        self._training.steps_per_epoch = len(found.places)
        a_pass = Pass(self._training, source, found, self._training.module)
        self._training.data = self._training.told_of(source.dataset, found.order)
        with self._training.loop(), closing(a_pass.fetcher):
            for place in range(len(found.places)):
                what = self._training.position.begin_step(is_first=place == 0)
                if what == "past":
                    continue
                is_done = what == "again"
                yield a_pass.step(self._training.trained - is_done, place, is_done=is_done)
                if self._training.phase != "between":
                    raise UsageError(
                        f"step {self._training.trained} was left unfinished: loop over the step to its end, then call "
                        "optimizer.step() once"
                    )

    def evaluate(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        collate_fn: Collate | None = None,
        workers: int = 0,
        prefetch: int = 8,
    ) -> Iterator[Evaluation]:
        """The loop of ``steps`` once over ``dataset``, without gradients and with the model in evaluation mode, shared out over
        all workers: ``for step in run.evaluate(held_out, 256): for images, labels in step: run.report(accuracy=...)``. Afterwards
        ``run.mean`` has the sample-weighted means of what was reported, the same float on every worker.

        Between the steps, on every worker. Batches have ``batch_size / leaves`` samples. Raises ``UsageError`` as ``steps`` does,
        and when the model changes its buffers meanwhile.
        """
        source = understood(
            dataset,
            batch_size,
            shuffle=False if not isinstance(dataset, DataLoader) else None,
            drop_last=False,
            collate_fn=collate_fn,
            sampler=None,
            workers=workers,
            prefetch=prefetch,
        )
        source.check(1)
        source.check_whole()
        self._training.demand_between("run.evaluate(...)")
        self._training.come_in()
        self._training.open()
        assert self._training.module is not None
        data = f"an evaluation over {self._training.told_of(source.dataset, '')}"
        given = self._training.position.begin_round()
        if given is not None:
            means: dict[str, float] = values.unpack(given.value)
            self._training.repeat_round(given)
            self._training.sums |= {name: (mean, 1) for name, mean in means.items()}
            yield DoneEvaluation(means)
            return
        with self._training.loop():
            evaluation = Evaluation(self._training, source, self._training.rounds, data, self._training.module)
            yield evaluation
            if self._training.phase != "between" or not evaluation.is_begun:
                raise UsageError("an evaluation was left unfinished: loop over it to its end")

    @overload
    def broadcast(self, value: Callable[[], Value]) -> Value: ...

    @overload
    def broadcast(self, value: Value) -> Value: ...

    def broadcast(self, value: Any) -> Any:
        """The lead's ``value``, on every worker: a decision that all must take alike, such as whether the time is over. A
        function is called, and only on the lead. Between the steps, on every worker; whoever comes later gets the same value
        there.

        Raises ``UsageError`` for what does not travel (see ``dmi_tensor.values``), or has more than 1 MiB packed.
        """
        self._training.demand_between("run.broadcast(...)")
        if self._training.model is None:
            raise UsageError("run.broadcast(...) belongs after run.model(...) and run.optimizer(...)")
        self._training.come_in()
        self._training.open()
        given = self._training.position.begin_round()
        if given is not None:
            self._training.repeat_round(given)
        else:
            given = self._training.tell(value, was_lead=self.is_lead)
        return values.unpack(given.value)

    # What a script reports and asks

    def report(self, **values: float | torch.Tensor) -> None:
        """Numbers of this leaf, or of this batch of an evaluation, means over its samples; ``step.metrics`` has their means."""
        self._training.report(values)

    def mean(self, name: str) -> float:
        """The mean of a reported number over all samples since the epoch began, or over those of the last evaluation that
        reported it."""
        return self._training.mean(name)

    def checkpoint(self) -> None:
        """Keep this version, with the optimizer's and the run's state, once all of its parts are durable.

        ``dmi-node serve NAME --follow JOB --every N`` makes each N-th one a version of a model. A plain run keeps none: it has
        nowhere to go back to but its start.
        """
        if self._training.phase != "between":
            raise UsageError("run.checkpoint() belongs between steps")
        if self._training.is_open and self._training.checkpointed != self._training.step:
            self._exchange.checkpoint(self._training.step, self._training.extra)
            self._training.checkpointed = self._training.step
            assert self._training.model is not None
            definition, buckets = self._training.model.definition, self._training.model.buckets
            self._exchange.checkpointed(self._training.step, lambda: named_tensors(definition, buckets))

    def publish(self, name: str, model: str, *, inputs: Sequence[str] = ()) -> None:
        """Make the parameters and buffers of now a version of the model ``name``, which ``dmi-node serve NAME --follow JOB``
        takes as soon as it is there, and ``infer`` and ``models`` know too. Between steps, on every worker; the lead does it.

        ``model`` makes the module without its weights: ``net.py:make``, a file of the job's, or ``module:function``. ``inputs``
        say what goes in where that cannot be found out, as in ``x=float32[N,3,224,224]``. A plain run publishes nothing. The
        versions of a training beyond the last 16 that nobody uses are removed.

        Raises ``UsageError`` inside a step, before the first one, and for what makes no such model; ``OSError`` when the version
        before could not be written.
        """
        if self._training.phase != "between":
            raise UsageError("run.publish() belongs between steps")
        if self._training.model is None or not self._training.is_open:
            raise UsageError("run.publish() belongs after the first step: there is nothing to publish yet")
        if not is_model_name(name):
            raise UsageError(f"{name[:80]!r} is no name of a model: letters, digits, '.', '-' and '_'")
        tensors = named_tensors(self._training.model.definition, self._training.model.buckets)
        self._exchange.publish(name, self._training.step, tensors, checked(model), inputs)

    def export(self, path: str | Path) -> None:
        """Write parameters and buffers as they are now: safetensors, or a torch file with a ``.pt`` suffix.

        In a job the file is written on this worker's host, in the worker's own directory unless ``path`` is absolute; it
        stays there when the job has ended, and the job's log says where.
        """
        if self._training.model is None:
            raise UsageError("call run.model(...) and run.optimizer(...) before run.export(...)")
        path = Path(path)
        wants_state = path.suffix in {".pt", ".pth"} and self._training.is_open
        state = self._exchange.optimizer_state() if wants_state else None
        export(path, named_tensors(self._training.model.definition, self._training.model.buckets), state)
        if provided() is not None:
            print(f"exported {path.absolute()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """The script is over; without a step its weights are those that it began with. Called by whoever runs it."""
        if self._closed:
            return
        self._closed = True
        if self._training.phase != "between":
            raise UsageError(
                f"the script ended inside step {self._training.step}: call optimizer.step() after the inner loop"
            )
        if self._training.resume is not None:
            raise UsageError(
                f"the checkpoint was made at {self._training.resume.mark.sentence}, and the script ended without it: has its "
                "data changed?"
            )
        self._training.open()
        assert self._training.model is not None
        self._training.model.check_same()
        self._training.take_over()
        kept = (*self._training.state.digests(), *self._training.things.digests())
        self._exchange.close(self._training.step, self._training.extra(), kept)
