"""The parameter server's machine: what one shard has been told, may apply, shows, and keeps readable.

The shell holds the tensors and does the arithmetic (``dmi_tensor``); here only their handles pass. The life of a step:
``Began`` from the workers, ``Contributed`` for each bucket until its root is complete, ``Apply`` (after the norms of
all shards are known, when the job clips) here and on every copy, ``Show`` once all copies that count have it. When every
bucket of this shard is shown the machine stands at the next step.

**No torn step.** Version ``t`` stays readable until step ``t`` is complete on *all* shards, and every worker has it. A
contribution to ``t + 1`` proves the first, because a worker computes on ``t + 1`` only when it was shown all of it.
"""

from dmi_protocol import limits
from dmi_protocol.errors import LocalProtocolError, RemoteProtocolError
from dmi_protocol.instant import Instant, after
from dmi_protocol.training.backup import Backup
from dmi_protocol.training.copies import Copies
from dmi_protocol.training.exchange import (
    Apply,
    Began,
    CheckpointAsked,
    Contributed,
    Copied,
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
    Replicate,
    Resume,
    ResumeAsked,
    Rostered,
    SayFinished,
    ShardEffect,
    ShardEvent,
    Show,
    StateAsked,
    TellNorms,
    Waited,
    WritePart,
)
from dmi_protocol.training.reception import Reception
from dmi_protocol.training.step import Gathering, Handle, Release, Subtree

Squares = tuple[tuple[int, float], ...]


class Shard:
    """Decides for one shard of one job. The shell must answer ``Open``, ``Measure`` and ``WritePart`` with events."""

    def __init__(self, roster: Rostered, shard: int) -> None:
        self._roster = roster
        self._shard = shard
        self._reception = Reception(roster)
        self._copies: Copies | None = None
        self._opened: Opened | None = None
        self._initial: set[int] = set()
        self._step = 0
        self._hyper: tuple[int, Began] | None = None
        self._began: dict[int, int] = {}
        self._gatherings: dict[int, Gathering] = {}
        self._applied: dict[int, Handle | None] = {}
        """Buckets that have the next version, and the roots that made it until that is shown."""
        self._shown: set[int] = set()
        self._is_under_way = False
        """Has somebody contributed to the step in flight?"""
        self._readable: set[int] = {0}
        self._squares: dict[int, float] = {}
        self._norms: dict[int, Squares] = {}
        self._all_norms: Squares = ()
        """Of all shards, when the primary before us had applied them to some buckets already."""
        self._told_norms: dict[int, Squares] = {}
        self._finishing: dict[int, int] = {}
        self._written = -1
        """The last step of which a part was asked for."""
        self._final_asked = False
        self._final_durable = False
        self._again_at: Instant | None = None

    @classmethod
    def promoted(cls, roster: Rostered, shard: int, backup: Backup) -> tuple["Shard", list[ShardEffect]]:
        """The primary is lost, and the copy ``backup`` takes its place at the very step. Gives what follows at once."""
        made = cls(roster, shard)
        made._reception.take_over(backup.definition, backup.fields)
        made._opened = opened = backup.opened
        made._copies = Copies(opened.buckets, opened.frozen, backup.definition)
        made._initial = {*opened.buckets, *opened.frozen}
        versions = {bucket: backup.versions[bucket] for bucket in opened.buckets}
        made._step = min(versions.values(), default=max(backup.versions.values(), default=0))
        made._gather()
        for bucket in (bucket for bucket, version in versions.items() if version > made._step):
            made._applied[bucket] = None
            made._gatherings[bucket].add(Subtree(0, opened.leaves), None)
        made._readable = {made._step}
        if not made._applied and all(backup.made_by_copy[bucket] < made._step for bucket in versions):
            made._readable.add(made._step - 1)
        if backup.norms is not None and backup.norms[0] == made._step:
            made._all_norms = backup.norms[1]
        if backup.norms is not None:
            own = tuple(square for square in backup.norms[1] if square[0] in versions)
            made._told_norms[backup.norms[0]] = own
        return made, made._take_part()

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
        return frozenset(self._attached()) - done

    def _attached(self) -> tuple[int, ...]:
        """The workers that are shown every version: all but the guests that have not come in yet."""
        guests = self._roster.guests
        return tuple(worker for worker in self._roster.workers if worker not in guests or worker in self._began)

    def deadline(self) -> Instant | None:
        """When what the copies have not confirmed is to be said again (``Waited``)."""
        return self._again_at

    def step(self, now: Instant, event: ShardEvent) -> list[ShardEffect]:
        """Take one event in and give the work that follows from it.

        Raises ``RemoteProtocolError`` for what no correct worker sends, ``LocalProtocolError`` when the shell erred.
        """
        work = self._take(event)
        is_waiting = len(self._applied) > len(self._shown) or (self._copies is not None and self._copies.is_awaited())
        if not is_waiting:
            self._again_at = None
        elif self._again_at is None or isinstance(event, Copied | Waited):
            self._again_at = after(now, limits.SAY_AGAIN_MS)
        return work

    def _take(self, event: ShardEvent) -> list[ShardEffect]:
        match event:
            case Rostered():
                return self._rostered(event)
            case Opened():
                return self._open(event)
            case Measured():
                return self._measured(event)
            case PartDurable():
                return self._part_durable(event)
            case NormsHeard():
                return self._norms_heard(event)
            case Copied(server, bucket, version):
                told = [] if self._copies is None else self._copies.copied(server, bucket, version)
                return [*told, *self._advance()]
            case Waited():
                return self._say_again()
            case _:
                return self._from_worker(event)

    def _from_worker(self, event: FromWorker) -> list[ShardEffect]:
        if event.worker not in self._roster.workers:
            gone: list[ShardEffect] = [Decline(event.worker, "peer", str(event.worker))]
            return [*gone, *_release(event.handle)] if isinstance(event, Contributed) else gone
        match event:
            case Greeted():
                return self._greeted(event)
            case ResumeAsked():
                return [Resume(event.worker)]
            case Initialized():
                return self._initialized(event)
            case Began():
                return self._begin(event)
            case Contributed():
                return self._contributed(event)
            case Pulled():
                return self._pulled(event)
            case CheckpointAsked():
                return self._checkpoint(event)
            case StateAsked():
                return self._give_state(event)
            case FinishAsked():
                return self._finish(event)

    # Who takes part

    def _rostered(self, event: Rostered) -> list[ShardEffect]:
        """A new generation: who is gone is forgotten, what anybody has contributed stays valid."""
        if event.generation <= self._roster.generation:
            return []
        self._roster = event
        self._reception.roster(event)
        for gone in self._began.keys() - set(event.workers):
            del self._began[gone]
        for gone in self._finishing.keys() - set(event.workers):
            del self._finishing[gone]
        return self._take_part()

    def _take_part(self) -> list[ShardEffect]:
        """What a new generation makes possible, or needs to be told."""
        work: list[ShardEffect] = []
        if self._copies is not None and self._has_everything():
            work += self._copies.roster(self._roster, self._step, self._reception.fields)
        work += [TellNorms(step, squares) for step, squares in sorted(self._told_norms.items())]
        return [*work, *self._welcome(), *self._advance(), *self._say_finished()]

    def _greeted(self, event: Greeted) -> list[ShardEffect]:
        is_first = not self._reception.definition
        disagreement = self._reception.greeted(event)
        if disagreement is not None:
            return [disagreement]
        opening: list[ShardEffect] = [Open(event.definition)] if is_first and self._opened is None else []
        return [*opening, *self._welcome()]

    def _open(self, event: Opened) -> list[ShardEffect]:
        self._opened = event
        self._copies = Copies(event.buckets, event.frozen, self._reception.definition)
        if event.step is not None:
            self._step, self._readable = event.step, {event.step}
            self._initial = {*event.buckets, *event.frozen}
        self._gather()
        found = self._reception.contradicts(event)
        return [found] if found is not None else self._fill() + self._welcome()

    def _has_everything(self) -> bool:
        return self._opened is not None and self._initial == {*self._opened.buckets, *self._opened.frozen}

    def _fill(self) -> list[ShardEffect]:
        """Copies are made as soon as there is something to copy."""
        if self._copies is None or not self._has_everything():
            return []
        return self._copies.roster(self._roster, self._step, self._reception.fields)

    def _initialized(self, event: Initialized) -> list[ShardEffect]:
        opened = self._defined()
        if event.bucket not in opened.buckets and event.bucket not in opened.frozen:
            raise RemoteProtocolError(f"bucket {event.bucket} is not of shard {self._shard}")
        self._initial.add(event.bucket)
        return [*self._fill(), *self._welcome()]

    def _welcome(self) -> list[ShardEffect]:
        """Nobody is welcome before the lead has brought the initial weights."""
        return self._reception.welcome(self._step) if self._has_everything() else []

    # The step in flight

    def _gather(self) -> None:
        definition = self._defined()
        root = Subtree(0, definition.leaves)
        self._gatherings = {bucket: Gathering([root]) for bucket in definition.buckets}
        self._applied.clear()
        self._shown.clear()
        self._is_under_way = False
        self._squares.clear()
        self._norms.clear()
        self._all_norms = ()
        self._told_norms = {step: told for step, told in self._told_norms.items() if step >= self._step - 1}

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
        return [*self._let_in(event), *self._advance()]

    def _let_in(self, event: Began) -> list[ShardEffect]:
        """Guests come in with a step that the lead begins: its version stays readable until they begin it, too."""
        if event.extra is None or event.worker != self._roster.lead:
            return []
        welcomes = self._reception.welcome_guests(event.step, event.extra)
        for welcome in welcomes:
            self._began.setdefault(welcome.worker, event.step - 1)
        return list(welcomes)

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
        if not was_complete and gathering.is_complete() and self._defined().clips and not self._all_norms:
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
        self._norms[self._shard] = self._told_norms[self._step] = squares
        return [TellNorms(self._step, squares), *self._advance()]

    def _norms_heard(self, event: NormsHeard) -> list[ShardEffect]:
        if event.step != self._step:
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
        if any(self._began.get(worker, -1) < self._step - 1 for worker in self._attached()):
            return False
        return not self._opened.clips or bool(self._all_norms) or self._norms.keys() == set(self._opened.shards)

    def _forget(self) -> list[ShardEffect]:
        """The version before the current one is given up once the step that made the current one is complete everywhere,
        and no worker has still to be shown it: one without leaves may be behind, and holds nobody up until then."""
        old = self._step - 1
        is_wanted = any(self._began.get(worker, -1) < old for worker in self._attached())
        if old not in self._readable or not self._is_under_way or is_wanted:
            return []
        self._readable.discard(old)
        return [Forget(old)]

    def _advance(self) -> list[ShardEffect]:
        work = self._forget()
        if self._may_apply():
            for bucket, gathering in self._gatherings.items():
                if bucket not in self._applied and gathering.is_complete():
                    work += self._apply(bucket)
        return [*work, *self._show()]

    def _apply(self, bucket: int) -> list[ShardEffect]:
        assert self._hyper is not None
        assert self._copies is not None
        hyper, root = self._hyper[1].hyper, self._root(bucket)
        norms = self._all_norms or tuple(sorted(square for squares in self._norms.values() for square in squares))
        self._applied[bucket] = root
        followers = self._copies.followers(bucket)
        work: list[ShardEffect] = []
        if followers:
            work.append(Replicate(followers, self._step, bucket, root, hyper, norms))
        work.append(Apply(self._step, bucket, root, hyper, norms))
        return [*work, *self._copies.made(bucket, self._step + 1)]

    def _show(self) -> list[ShardEffect]:
        """A version is shown once everybody who may be promoted has it."""
        work: list[ShardEffect] = []
        for bucket in [bucket for bucket in self._applied if bucket not in self._shown]:
            if self._copies is not None and self._copies.may_show(bucket, self._step + 1):
                self._shown.add(bucket)
                work.append(Show(self._step + 1, bucket, self._attached()))
                work.extend(_release(self._applied[bucket]))
        if self._shown and len(self._shown) == len(self._gatherings):
            self._step += 1
            self._readable.add(self._step)
            self._gather()
        return work

    def _say_again(self) -> list[ShardEffect]:
        if self._copies is None:
            return []
        lost, silent = self._copies.again(self._applied, self._step)
        norms = self._all_norms or tuple(sorted(square for squares in self._norms.values() for square in squares))
        for bucket, servers in silent.items():
            if bucket not in self._shown and self._hyper is not None:
                root, hyper = self._applied[bucket], self._hyper[1].hyper
                lost.append(Replicate(servers, self._step, bucket, root, hyper, norms))
        return lost

    def _pulled(self, event: Pulled) -> list[ShardEffect]:
        """What is readable is shown; what is not whole yet will be shown when it is; what is gone is refused."""
        for bucket in event.buckets:
            self._own(bucket)
        if event.version in self._readable:
            return [Show(event.version, bucket, (event.worker,)) for bucket in event.buckets]
        if event.version == self._step + 1:
            return [Show(event.version, bucket, (event.worker,)) for bucket in event.buckets if bucket in self._shown]
        if event.version > self._step:
            return []
        return [Decline(event.worker, "version", str(event.version))]

    # Checkpoints and the end

    def _checkpoint(self, event: CheckpointAsked) -> list[ShardEffect]:
        """A lead that has just become it asks for what the one before it may have asked for already."""
        self._follow(event.step)
        if event.step > self._step:
            raise RemoteProtocolError(f"a checkpoint of step {event.step}, the job is at {self._step}")
        if event.worker != self._roster.lead or event.step < self._step or self._applied:
            return []
        if event.step <= self._written:
            return []
        self._written = event.step
        return [self._write(event, final=False)]

    def _write(self, event: CheckpointAsked | FinishAsked, *, final: bool) -> WritePart:
        return WritePart(event.step, event.extra, final, self._reception.fields)

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
        expected = set(self._roster.workers) - set(self._roster.guests)
        if not self._final_durable or not expected <= self._finishing.keys():
            return []
        return [SayFinished(tuple(sorted(self._finishing))), End()]

    def check(self) -> None:
        """Assert the invariants."""
        for gathering in self._gatherings.values():
            gathering.check()
        assert self._step in self._readable, "the version in use is not readable"
        assert not self._shown or len(self._shown) < len(self._gatherings), "a finished step is still in flight"
        assert self._shown <= self._applied.keys() <= self._gatherings.keys(), "what was not applied is shown"
        assert len(self._readable) <= 2, "more versions are kept than there is room for"
        if self._applied:
            assert self._step - 1 not in self._readable, "a version was overwritten while it was readable"


def _release(handle: Handle | None) -> list[ShardEffect]:
    return [] if handle is None else [Release(handle)]
