"""The parameter server's machine: what one shard has been told, may apply, shows, and keeps readable.

The shell holds the tensors and does the arithmetic (``dmi_tensor``); here only their handles pass. The life of a step:
``Began`` from the workers, ``Contributed`` for each bucket until its root is complete, ``Apply`` (after the norms of
all shards are known, when the job clips), ``Show``. When every bucket of this shard is shown the machine stands at the
next step.

**No torn step.** Version ``t`` stays readable until step ``t`` is complete on *all* shards, and every worker has it. A
contribution to ``t + 1`` proves the first, because a worker computes on ``t + 1`` only when it was shown all of it.
"""

from dmi_protocol.errors import LocalProtocolError, RemoteProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.training.agreement import difference
from dmi_protocol.training.exchange import (
    Apply,
    Began,
    CheckpointAsked,
    Contributed,
    Decline,
    Disagree,
    End,
    FinishAsked,
    Forget,
    FromWorker,
    GiveState,
    Greeted,
    Initialized,
    Measure,
    Measured,
    NormsHeard,
    Open,
    Opened,
    PartDurable,
    Pulled,
    Resume,
    ResumeAsked,
    Rostered,
    SayFinished,
    ShardEffect,
    ShardEvent,
    Show,
    StateAsked,
    TellNorms,
    Welcome,
    WritePart,
)
from dmi_protocol.training.step import Gathering, Handle, Release, Subtree


class Shard:
    """Decides for one shard of one job. The shell must answer ``Open``, ``Measure`` and ``WritePart`` with events."""

    def __init__(self, roster: Rostered, shard: int) -> None:
        self._roster = roster
        self._shard = shard
        self._greetings: dict[int, Greeted] = {}
        self._welcomed: set[int] = set()
        self._opened: Opened | None = None
        self._initial: set[int] = set()
        self._step = 0
        self._hyper: tuple[int, Began] | None = None
        self._began: dict[int, int] = {}
        self._gatherings: dict[int, Gathering] = {}
        self._applied: set[int] = set()
        self._is_under_way = False
        """Has somebody contributed to the step in flight?"""
        self._readable: set[int] = {0}
        self._squares: dict[int, float] = {}
        self._norms: dict[int, tuple[tuple[int, float], ...]] = {}
        self._finishing: dict[int, int] = {}
        self._final_asked = False
        self._final_durable = False

    @property
    def current(self) -> int:
        """The step in flight: version ``current`` is whole here."""
        return self._step

    @property
    def readable(self) -> frozenset[int]:
        """The versions that a worker can still be shown."""
        return frozenset(self._readable)

    def waits_for(self) -> frozenset[int]:
        """The workers that have not said that they begin the step in flight (or that they have finished)."""
        done = {w for w, step in self._began.items() if step >= self._step} | self._finishing.keys()
        return frozenset(self._roster.workers) - done

    def deadline(self) -> Instant | None:
        """A shard is driven by its workers alone; patience with silent peers is the shell's."""
        return None

    def step(self, now: Instant, event: ShardEvent) -> list[ShardEffect]:
        """Take one event in and give the work that follows from it.

        Raises ``RemoteProtocolError`` for what no correct worker sends, ``LocalProtocolError`` when the shell erred.
        """
        if isinstance(event, Rostered):
            return self._rostered(event)
        if isinstance(event, Opened):
            return self._open(event)
        if isinstance(event, Measured):
            return self._measured(event)
        if isinstance(event, PartDurable):
            return self._part_durable(event)
        if isinstance(event, NormsHeard):
            return self._norms_heard(event)
        return self._from_worker(event)

    def _from_worker(self, event: ShardEvent) -> list[ShardEffect]:
        match event:
            case Greeted():
                return self._current_generation(event) or self._greeted(event)
            case ResumeAsked():
                return self._current_generation(event) or [Resume(event.worker)]
            case Initialized():
                return self._current_generation(event) or self._initialized(event)
            case Began():
                return self._current_generation(event) or self._begin(event)
            case Contributed():
                stale = self._current_generation(event)
                return [*stale, *_release(event.handle)] if stale else self._contributed(event)
            case Pulled():
                return self._current_generation(event) or self._pulled(event)
            case CheckpointAsked():
                return self._current_generation(event) or self._checkpoint(event)
            case StateAsked():
                return self._current_generation(event) or self._give_state(event)
            case FinishAsked():
                return self._current_generation(event) or self._finish(event)
            case _:
                raise LocalProtocolError(f"not an event of a shard: {event!r}")

    def _current_generation(self, event: FromWorker) -> list[ShardEffect]:
        """Empty when the worker speaks in the generation of our roster and is in it; else the refusal."""
        if event.generation != self._roster.generation:
            return [Decline(event.worker, "generation", str(self._roster.generation))]
        if event.worker not in self._roster.workers:
            return [Decline(event.worker, "peer", str(event.worker))]
        return []

    # Before the first step

    def _rostered(self, event: Rostered) -> list[ShardEffect]:
        """A new generation: who is gone is forgotten, what survivors have contributed stays valid."""
        if event.generation <= self._roster.generation:
            return []
        self._roster = event
        for gone in self._greetings.keys() - set(event.workers):
            del self._greetings[gone]
            self._began.pop(gone, None)
            self._welcomed.discard(gone)
        return self._advance()

    def _greeted(self, event: Greeted) -> list[ShardEffect]:
        disagreement = self._compare(event)
        if disagreement is not None:
            return [disagreement]
        is_first = not self._greetings
        self._greetings[event.worker] = event
        self._welcomed.discard(event.worker)
        opening: list[ShardEffect] = [Open(event.definition)] if is_first and self._opened is None else []
        return [*opening, *self._welcome()]

    def _compare(self, event: Greeted) -> Disagree | None:
        """The first field in which this worker differs from the one with the lowest index that has greeted."""
        if not self._greetings:
            return None
        other = self._greetings[min(self._greetings)]
        found = difference(event, other.fields, other.worker)
        if found is None and event.definition != other.definition:
            found = Disagree(event.worker, other.worker, "definition", "", "")
        return found

    def _open(self, event: Opened) -> list[ShardEffect]:
        self._opened = event
        if event.step is not None:
            self._step, self._readable = event.step, {event.step}
            self._initial = {*event.buckets, *event.frozen}
        self._gather()
        for greeted in self._greetings.values() if event.fingerprint else ():  # all that come later are as these are
            if (found := difference(greeted, event.fingerprint, None)) is not None:
                return [found]
        return self._welcome()

    def _initialized(self, event: Initialized) -> list[ShardEffect]:
        opened = self._defined()
        if event.bucket not in opened.buckets and event.bucket not in opened.frozen:
            raise RemoteProtocolError(f"bucket {event.bucket} is not of shard {self._shard}")
        self._initial.add(event.bucket)
        return self._welcome()

    def _welcome(self) -> list[ShardEffect]:
        """Nobody is welcome before all have said the same and the lead has brought the initial weights."""
        if self._opened is None or self._initial != {*self._opened.buckets, *self._opened.frozen}:
            return []
        if not set(self._roster.workers) <= self._greetings.keys():
            return []
        new = sorted(self._greetings.keys() - self._welcomed)
        self._welcomed.update(new)
        return [Welcome(worker, self._step) for worker in new]

    # The step in flight

    def _gather(self) -> None:
        definition = self._defined()
        root = Subtree(0, definition.leaves)
        self._gatherings = {bucket: Gathering([root]) for bucket in definition.buckets}
        self._applied.clear()
        self._is_under_way = False
        self._squares.clear()
        self._norms.clear()

    def _defined(self) -> Opened:
        if self._opened is None:
            raise RemoteProtocolError("a worker goes on before it was welcomed")
        return self._opened

    def _own(self, bucket: int) -> None:
        if bucket not in self._defined().buckets:
            raise RemoteProtocolError(f"bucket {bucket} is not of shard {self._shard}")

    def _follow(self, step: int) -> None:
        """A shard without buckets has no part in a step, and stands wherever its workers do."""
        if not self._defined().buckets and step > self._step:
            self._step = step
            self._readable = {step}

    def _begin(self, event: Began) -> list[ShardEffect]:
        self._follow(event.step)
        if event.step > self._step:
            raise RemoteProtocolError(f"worker {event.worker} begins step {event.step}, the job is at {self._step}")
        self._began[event.worker] = max(event.step, self._began.get(event.worker, -1))
        if event.step < self._step:
            return self._advance()
        if self._finishing:
            return [Disagree(event.worker, min(self._finishing), "steps", f"{event.step + 1}", f"{self._step}")]
        if self._hyper is None or self._hyper[0] < event.step:
            self._hyper = (event.step, event)
        other = self._hyper[1]
        if event.hyper != other.hyper:
            return [Disagree(event.worker, other.worker, "hyperparameters", "", "")]
        if event.leaf_sizes != other.leaf_sizes:
            sizes = str(sum(event.leaf_sizes)), str(sum(other.leaf_sizes))
            return [Disagree(event.worker, other.worker, "samples in the batch", *sizes)]
        return self._advance()

    def _contributed(self, event: Contributed) -> list[ShardEffect]:
        self._own(event.bucket)
        event.subtree.check(self._defined().leaves)
        if event.step > self._step:
            raise RemoteProtocolError(f"a contribution to step {event.step}, the job is at {self._step}")
        if event.step < self._step or event.bucket in self._applied:
            return _release(event.handle)
        work: list[ShardEffect] = []
        self._is_under_way = True
        gathering = self._gatherings[event.bucket]
        was_complete = gathering.is_complete()
        work.extend(gathering.add(event.subtree, event.handle))
        if not was_complete and gathering.is_complete() and self._defined().clips:
            work.append(Measure(event.step, event.bucket, self._root(event.bucket)))
        return [*work, *self._advance()]

    def _root(self, bucket: int) -> Handle | None:
        return self._gatherings[bucket].sums[Subtree(0, self._defined().leaves)]

    def _measured(self, event: Measured) -> list[ShardEffect]:
        if event.step != self._step or event.bucket not in self._gatherings:
            raise LocalProtocolError(f"measured {event.bucket} of step {event.step} at step {self._step}")
        self._squares[event.bucket] = event.square
        if len(self._squares) < len(self._gatherings):
            return []
        squares = tuple(sorted(self._squares.items()))
        self._norms[self._shard] = squares
        return [TellNorms(self._step, squares), *self._advance()]

    def _norms_heard(self, event: NormsHeard) -> list[ShardEffect]:
        if event.generation != self._roster.generation or event.step != self._step:
            return []
        if event.shard not in self._defined().shards:
            raise RemoteProtocolError(f"norms of shard {event.shard}, which holds no buckets")
        self._norms.setdefault(event.shard, event.squares)
        return self._advance()

    def _may_apply(self) -> bool:
        """Applying writes where the version before the current one lay, and uses up the optimizer state.

        So the lead must have begun this step (its wish for a checkpoint would have come first), and every worker the
        one before (it has then copied what it was shown). With clipping, the norms of all shards must be known.
        """
        if self._opened is None or self._hyper is None or self._hyper[0] != self._step:
            return False
        if self._began.get(self._roster.lead, -1) < self._step:
            return False
        if any(self._began.get(worker, -1) < self._step - 1 for worker in self._roster.workers):
            return False
        return not self._opened.clips or self._norms.keys() == set(self._opened.shards)

    def _forget(self) -> list[ShardEffect]:
        """The version before the current one is given up once the step that made the current one is complete everywhere,
        and no worker has still to be shown it: one without leaves may be behind, and holds nobody up until then."""
        old = self._step - 1
        is_wanted = any(self._began.get(worker, -1) < old for worker in self._roster.workers)
        if old not in self._readable or not self._is_under_way or is_wanted:
            return []
        self._readable.discard(old)
        return [Forget(old)]

    def _advance(self) -> list[ShardEffect]:
        work = self._forget()
        if not self._may_apply():
            return work
        assert self._hyper is not None
        norms = tuple(sorted(square for squares in self._norms.values() for square in squares))
        for bucket, gathering in self._gatherings.items():
            if bucket not in self._applied and gathering.is_complete():
                root = self._root(bucket)
                self._applied.add(bucket)
                work.append(Apply(self._step, bucket, root, self._hyper[1].hyper, norms))
                work.append(Show(self._step + 1, bucket, self._roster.workers))
                work.extend(_release(root))
        if self._applied and len(self._applied) == len(self._gatherings):
            self._step += 1
            self._readable.add(self._step)
            self._gather()
        return work

    def _pulled(self, event: Pulled) -> list[ShardEffect]:
        """What is readable is shown; what is not whole yet will be shown when it is; what is gone is refused."""
        for bucket in event.buckets:
            self._own(bucket)
        if event.version in self._readable:
            return [Show(event.version, bucket, (event.worker,)) for bucket in event.buckets]
        if event.version == self._step + 1:
            return [Show(event.version, bucket, (event.worker,)) for bucket in event.buckets if bucket in self._applied]
        if event.version > self._step:
            return []
        return [Decline(event.worker, "version", str(event.version))]

    # Checkpoints and the end

    def _checkpoint(self, event: CheckpointAsked) -> list[ShardEffect]:
        self._follow(event.step)
        if event.worker != self._roster.lead or event.step < self._step:
            return []
        if event.step > self._step or self._applied:
            raise RemoteProtocolError(f"a checkpoint of step {event.step}, the job is at {self._step}")
        return [self._write(event, final=False)]

    def _write(self, event: CheckpointAsked | FinishAsked, *, final: bool) -> WritePart:
        fields = next((greeted.fields for greeted in self._greetings.values()), ())  # they are all the same
        return WritePart(event.step, event.extra, final, fields)

    def _give_state(self, event: StateAsked) -> list[ShardEffect]:
        """Optimizer state exists at one version only: while a step is being applied there is none to give."""
        self._follow(event.step)
        if event.worker != self._roster.lead or event.step != self._step or self._applied:
            return [Decline(event.worker, "step", str(self._step))]
        return [GiveState(event.worker, event.step)]

    def _finish(self, event: FinishAsked) -> list[ShardEffect]:
        self._follow(event.step)
        if event.step != self._step or self._applied:
            return [Disagree(event.worker, self._roster.lead, "steps", str(event.step), str(self._step))]
        ahead = [worker for worker, step in self._began.items() if step >= self._step]
        if ahead:
            return [Disagree(event.worker, min(ahead), "steps", str(event.step), str(self._step + 1))]
        self._finishing[event.worker] = event.step
        work: list[ShardEffect] = []
        if event.worker == self._roster.lead and not self._final_asked:
            self._final_asked = True
            work.append(self._write(event, final=True))
        return [*work, *self._say_finished()]

    def _part_durable(self, event: PartDurable) -> list[ShardEffect]:
        if not event.final:
            return []
        self._final_durable = True
        return self._say_finished()

    def _say_finished(self) -> list[ShardEffect]:
        """Only when all scripts are over is the job's last step known to be the last."""
        if not self._final_durable or not set(self._roster.workers) <= self._finishing.keys():
            return []
        return [SayFinished(tuple(sorted(self._finishing))), End()]

    def check(self) -> None:
        """Assert the invariants."""
        for gathering in self._gatherings.values():
            gathering.check()
        assert self._step in self._readable, "the version in use is not readable"
        assert not self._applied or self._applied < set(self._gatherings), "a finished step is still in flight"
        assert len(self._readable) <= 2, "more versions are kept than there is room for"
        if self._applied:
            assert self._step - 1 not in self._readable, "a version was overwritten while it was readable"


def _release(handle: Handle | None) -> list[ShardEffect]:
    return [] if handle is None else [Release(handle)]
