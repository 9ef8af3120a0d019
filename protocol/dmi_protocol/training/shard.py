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
from dmi_protocol.training import exchange as x
from dmi_protocol.training.backup import Backup
from dmi_protocol.training.beginnings import Beginnings
from dmi_protocol.training.copies import Copies
from dmi_protocol.training.ending import Ending
from dmi_protocol.training.norms import Norms
from dmi_protocol.training.reception import Reception
from dmi_protocol.training.step import Gathering, Handle, Release, Subtree


class Shard:
    """Decides for one shard of one job. The shell must answer ``Open``, ``Measure`` and ``WritePart`` with events."""

    def __init__(self, roster: x.Rostered, shard: int) -> None:
        self._roster = roster
        self._shard = shard
        self._reception = Reception(roster)
        self._copies: Copies | None = None
        self._opened: x.Opened | None = None
        self._step = 0
        self._beginnings = Beginnings(roster)
        self._gatherings: dict[int, Gathering] = {}
        self._applied: dict[int, Handle | None] = {}
        """Buckets that have the next version, and the roots that made it until that is shown."""
        self._complete: dict[int, None] = {}
        """Buckets whose root is there and was not applied yet: looking through all of them at each contribution would take
        longer than the arithmetic."""
        self._unshown: dict[int, None] = {}
        """Buckets that were applied and not shown yet, in the order in which they were."""
        self._shown: set[int] = set()
        self._is_under_way = False
        """Has somebody contributed to the step in flight?"""
        self._readable: set[int] = {0}
        self._norms = Norms(shard)
        self._ending = Ending(roster)
        self._again_at: Instant | None = None
        self._now = Instant(0)
        self._lease: Instant | None = None
        """Until when workers are answered; None when nobody speaks of leases."""
        self._kept: tuple[int, bytes] | None = None
        """A step that the lead has begun, and what it keeps of the run there: joiners may come in with it."""
        self._deferred: dict[x.Pulled, None] = {}
        """What was asked for meanwhile."""

    @classmethod
    def promoted(
        cls, roster: x.Rostered, shard: int, backup: Backup, now: Instant, leased: x.Leased | None = None
    ) -> tuple["Shard", list[x.ShardEffect]]:
        """The primary is lost, and the copy ``backup`` takes its place at the very step. Gives what follows at once."""
        made = cls(roster, shard)
        made._now, made._lease = now, None if leased is None else leased.until
        made._reception.take_over(backup.definition, backup.fields, backup.opened)
        made._opened = opened = backup.opened
        made._copies = Copies(opened.buckets, opened.frozen, backup.definition)
        versions = {bucket: backup.versions[bucket] for bucket in opened.buckets}
        made._step = min(versions.values(), default=max(backup.versions.values(), default=0))
        made._gather()
        for bucket in (bucket for bucket, version in versions.items() if version > made._step):
            made._applied[bucket] = made._unshown[bucket] = None
            made._gatherings[bucket].add(Subtree(0, opened.leaves), None)
        made._readable = {made._step}
        if not made._applied and all(backup.made_by_copy[bucket] < made._step for bucket in versions):
            made._readable.add(made._step - 1)
        if backup.norms is not None:
            made._norms.take_over(made._step, backup.norms, versions)
        return made, made._take_part()

    @property
    def current(self) -> int:
        """The step in flight: version ``current`` is whole here."""
        return self._step

    @property
    def readable(self) -> frozenset[int]:
        """The versions that a worker can still be shown."""
        return frozenset(self._readable)

    def has_installed(self, worker: int, version: int) -> bool:
        """Has a worker all of a version in place? What is the same in the next one need not be shown to it again."""
        return self._beginnings.has_installed(worker, version)

    def deadline(self) -> Instant | None:
        """When what the copies have not confirmed is to be said again (``Waited``)."""
        return self._again_at

    def step(self, now: Instant, event: x.ShardEvent) -> list[x.ShardEffect]:
        """Take one event in and give the work that follows from it.

        Raises ``RemoteProtocolError`` for what no correct worker sends, ``LocalProtocolError`` when the shell erred.
        """
        self._now = now
        work = self._take(event)
        if not self._is_waiting():
            self._again_at = None
        elif self._again_at is None or isinstance(event, x.Waited):
            self._again_at = after(now, limits.SAY_AGAIN_MS)
        return work

    def _is_waiting(self) -> bool:
        """For the word of another server."""
        for_copies = bool(self._unshown) or (self._copies is not None and self._copies.is_awaited())
        return for_copies or self._lacks_norms()

    def _lacks_norms(self) -> bool:
        """Ours are told, and others' have not come."""
        opened = self._opened
        is_clipping = opened is not None and opened.clips and bool(self._norms.ask(self._step))
        return opened is not None and is_clipping and not self._norms.are_complete(opened.shards)

    def _take(self, event: x.ShardEvent) -> list[x.ShardEffect]:
        match event:
            case x.Rostered():
                return self._rostered(event)
            case x.Opened():
                return self._open(event)
            case x.Measured():
                return self._measured(event)
            case x.PartDurable(_, final):
                return self._ending.durable(final=final)
            case x.NormsHeard():
                return self._norms_heard(event)
            case x.Copied(server, bucket, version):
                told = [] if self._copies is None else self._copies.copied(server, bucket, version)
                return [*told, *self._advance()]
            case x.CopyTold(server, versions):
                return self._copy_told(server, versions)
            case x.Leased(until):
                self._lease = until
                asked, self._deferred = self._deferred, {}
                return [*self._advance(), *(effect for pull in asked for effect in self._pulled(pull))]
            case x.Waited():
                return self._ask_again()
            case _:
                return self._from_worker(event)

    def _from_worker(self, event: x.FromWorker) -> list[x.ShardEffect]:
        if event.worker not in self._roster.workers:
            given = event.handle if isinstance(event, x.Contributed) else None
            return [x.Decline(event.worker, "peer", str(event.worker)), *_release(given)]
        match event:
            case x.Greeted():
                return self._greeted(event)
            case x.ResumeAsked():
                return [x.GiveResume(event.worker)]
            case x.Initialized():
                return self._initialized(event)
            case x.Began():
                return self._begin(event)
            case x.Contributed():
                return self._contributed(event)
            case x.Pulled():
                return self._pulled(event)
            case x.CheckpointAsked():
                return self._checkpoint(event)
            case x.StateAsked():
                return self._give_state(event)
            case x.FinishAsked():
                return self._finish(event)

    # Who takes part

    def _rostered(self, event: x.Rostered) -> list[x.ShardEffect]:
        """A new generation: who is gone is forgotten, what anybody has contributed stays valid."""
        if event.generation <= self._roster.generation:
            return []
        self._roster = event
        self._reception.roster(event)
        self._beginnings.roster(event)
        return [*self._take_part(), *self._ending.roster(event)]

    def _take_part(self) -> list[x.ShardEffect]:
        """What a new generation makes possible, or needs to be told."""
        return [*self._fill(), *self._norms.again(), *self._welcome(), *self._advance()]

    def _greeted(self, event: x.Greeted) -> list[x.ShardEffect]:
        is_first = not self._reception.definition
        lacking = self._reception.lacking(event.worker)
        if (disagreement := self._reception.greeted(event)) is not None:
            return [disagreement]
        if is_first and self._opened is None:
            return [x.Open(event.definition)]
        asks: list[x.ShardEffect] = [x.TellLacking(event.worker, lacking)] if lacking else []
        return [*asks, *self._welcome(), *self._let_in()]

    def _open(self, event: x.Opened) -> list[x.ShardEffect]:
        self._opened = event
        self._copies = Copies(event.buckets, event.frozen, self._reception.definition)
        if event.step is not None:
            self._step, self._readable = event.step, {event.step}
        self._gather()
        found = self._reception.opened(event)
        return [found] if found is not None else self._fill() + self._welcome()

    def _fill(self) -> list[x.ShardEffect]:
        """Copies are made as soon as there is something to copy."""
        if self._copies is None or not self._reception.has_everything:
            return []
        return self._copies.roster(self._roster, self._step, self._reception.fields)

    def _initialized(self, event: x.Initialized) -> list[x.ShardEffect]:
        self._defined()
        self._reception.initialized(event.bucket)
        return [*self._fill(), *self._welcome()]

    def _welcome(self) -> list[x.ShardEffect]:
        return self._reception.welcome(self._step)

    # The step in flight

    def _gather(self) -> None:
        definition = self._defined()
        root = Subtree(0, definition.leaves)
        self._gatherings = {bucket: Gathering([root]) for bucket in definition.buckets}
        self._applied.clear()
        self._complete.clear()
        self._unshown.clear()
        self._shown.clear()
        self._is_under_way = False
        self._norms.begin(self._step)

    def _defined(self) -> x.Opened:
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

    def _begin(self, event: x.Began) -> list[x.ShardEffect]:
        self._follow(event.step)
        if event.step > self._step:
            raise RemoteProtocolError(f"worker {event.worker} begins step {event.step}, the job is at {self._step}")
        self._beginnings.note(event)
        if event.step < self._step:
            return self._advance()
        if self._ending.finishing:
            other = min(self._ending.finishing)
            return [x.Disagree(event.worker, other, "steps", f"{event.step + 1}", f"{self._step}")]
        found = self._beginnings.contradiction(event)
        if event.extra is not None and event.worker == self._roster.lead:
            self._kept = event.step, event.extra
        return [found] if found is not None else [*self._let_in(), *self._advance()]

    def _let_in(self) -> list[x.ShardEffect]:
        """Joiners come in with a step that the lead has begun: its version stays readable until they begin it, too.

        Also those that greet when we are further already. Another shard may have let them in before: it waits for them, they
        wait for us, and the lead for that shard. Nobody has contributed to what comes after that step then.
        """
        if self._kept is None or self._kept[0] not in self._readable or self._step - self._kept[0] > 1:
            return []
        if self._kept[0] < self._step and self._is_under_way:
            return []
        welcomes = self._reception.welcome_joiners(*self._kept)
        for welcome in welcomes:
            self._beginnings.come_in(welcome.worker, self._kept[0])
        return list(welcomes)

    def _contributed(self, event: x.Contributed) -> list[x.ShardEffect]:
        self._own(event.bucket)
        event.subtree.check(self._defined().leaves)
        if event.step > self._step:
            raise RemoteProtocolError(f"a contribution to step {event.step}, the job is at {self._step}")
        if event.step < self._step or event.bucket in self._applied:
            return _release(event.handle)
        work: list[x.ShardEffect] = []
        self._is_under_way = True
        gathering = self._gatherings[event.bucket]
        was_complete = gathering.is_complete()
        work.extend(gathering.add(event.subtree, event.handle))
        if gathering.is_complete():
            self._complete[event.bucket] = None
        if not was_complete and gathering.is_complete() and self._defined().clips and not self._norms.are_known:
            work.append(x.Measure(event.step, event.bucket, self._root(event.bucket)))
        return [*work, *self._advance()]

    def _root(self, bucket: int) -> Handle | None:
        return self._gatherings[bucket].sums[Subtree(0, self._defined().leaves)]

    def _measured(self, event: x.Measured) -> list[x.ShardEffect]:
        if event.step != self._step or event.bucket not in self._gatherings:
            raise LocalProtocolError(f"measured {event.bucket} of step {event.step} at step {self._step}")
        told = self._norms.measured(event.step, event.bucket, event.square, len(self._gatherings))
        return [*told, *self._advance()] if told else []

    def _norms_heard(self, event: x.NormsHeard) -> list[x.ShardEffect]:
        told: list[x.ShardEffect] = (
            [*self._norms.answer(event.step)] if event.asks and event.shard != self._shard else []
        )
        if event.step != self._step:
            return told
        if event.shard not in self._defined().shards:
            raise RemoteProtocolError(f"norms of shard {event.shard}, which holds no buckets")
        self._norms.heard(event.shard, event.squares)
        return [*told, *self._advance()]

    def _may_apply(self) -> bool:
        """Applying writes where the version before the current one lay, and uses up the optimizer state.

        So the lead must have begun this step (its wish for a checkpoint would have come first), and every worker the
        one before (it has then copied what it was shown). With clipping, the norms of all shards must be known.
        """
        begun = self._beginnings
        if self._opened is None or begun.hyper(self._step) is None or not begun.has_lead_begun(self._step):
            return False
        has_norms = not self._opened.clips or self._norms.are_complete(self._opened.shards)
        return has_norms and begun.has_everybody_begun(self._step - 1)

    def _forget(self) -> list[x.ShardEffect]:
        """The version before the current one is given up once the step that made the current one is complete everywhere,
        and no worker has still to be shown it: one without leaves may be behind, and holds nobody up until then."""
        old = self._step - 1
        is_over = self._is_under_way and self._beginnings.has_everybody_begun(old)
        if old not in self._readable or not is_over:
            return []
        self._readable.discard(old)
        return [x.Forget(old)]

    def _advance(self) -> list[x.ShardEffect]:
        work = self._forget()
        if self._may_apply():
            complete, self._complete = self._complete, {}
            for bucket in sorted(complete):
                work += self._apply(bucket)
        return [*work, *self._show()]

    def _apply(self, bucket: int) -> list[x.ShardEffect]:
        assert self._copies is not None
        hyper, root, norms = self._beginnings.hyper(self._step) or b"", self._root(bucket), self._norms.all()
        self._applied[bucket] = root
        self._unshown[bucket] = None
        followers = self._copies.followers(bucket)
        sends = [x.ReplicateRoot(followers, self._step, bucket, root, hyper, norms)] if followers else []
        applies = x.ApplyRoot(self._step, bucket, root, hyper, norms)
        return [*sends, applies, *self._copies.made(bucket, self._step + 1)]

    def silent_copies(self) -> tuple[int, ...]:
        """The servers whose word we wait for."""
        return () if self._copies is None else self._copies.silent(self._applied, self._step)

    def _is_leased(self) -> bool:
        return self._lease is None or self._now < self._lease

    def _show(self) -> list[x.ShardEffect]:
        """A version is shown once everybody who may be promoted has it; and only while our node knows of a quorum."""
        work: list[x.ShardEffect] = []
        if not self._is_leased():
            return work
        for bucket in list(self._unshown):
            if self._copies is not None and self._copies.may_show(bucket, self._step + 1):
                self._shown.add(bucket)
                del self._unshown[bucket]
                work.append(x.ShowBucket(self._step + 1, bucket, self._beginnings.attached()))
                work.extend(_release(self._applied[bucket]))
        if self._shown and len(self._shown) == len(self._gatherings):
            self._step += 1
            self._readable.add(self._step)
            self._gather()
        return work

    def _ask_again(self) -> list[x.ShardEffect]:
        norms = self._norms.ask(self._step) if self._lacks_norms() else []
        return [*norms, *([] if self._copies is None else self._copies.ask(self._applied, self._step))]

    def _copy_told(self, server: int, versions: tuple[tuple[int, int], ...]) -> list[x.ShardEffect]:
        if self._copies is None:
            return []
        hyper = self._beginnings.hyper(self._step)
        roots = {bucket: root for bucket, root in self._applied.items() if bucket not in self._shown}
        again = None if hyper is None else (roots, hyper, self._norms.all())
        work = self._copies.told(server, versions, self._applied, self._step, again)
        return [*work, *self._advance()]

    def _pulled(self, event: x.Pulled) -> list[x.ShardEffect]:
        """What is readable is shown; what is not whole yet will be shown when it is; what is gone is refused, unless the worker
        has had it since it asked."""
        for bucket in event.buckets:
            self._own(bucket)
        if not self._is_leased():
            self._deferred[event] = None
            return []
        if event.worker not in self._roster.workers:
            return []
        if event.version in self._readable:
            return [x.ShowBucket(event.version, bucket, (event.worker,)) for bucket in event.buckets]
        if event.version == self._step + 1:
            return self._show_or_tell(event)
        if event.version > self._step or self._beginnings.has_begun(event.worker, event.version):
            return []
        return [x.Decline(event.worker, "version", str(event.version))]

    def _show_or_tell(self, event: x.Pulled) -> list[x.ShardEffect]:
        """Of the next version: what is whole, and of the rest what has come."""
        shown = [b for b in event.buckets if b in self._shown]
        open_ = [b for b in event.buckets if b not in self._applied and not self._gatherings[b].is_complete()]
        work: list[x.ShardEffect] = [x.ShowBucket(event.version, bucket, (event.worker,)) for bucket in shown]
        if open_:
            held = tuple((bucket, tuple(sorted(self._gatherings[bucket].sums))) for bucket in open_)
            work.append(x.TellOutstanding(event.worker, self._step, held))
        return work

    # Checkpoints and the end

    def _checkpoint(self, event: x.CheckpointAsked) -> list[x.ShardEffect]:
        self._follow(event.step)
        if event.step > self._step:
            raise RemoteProtocolError(f"a checkpoint of step {event.step}, the job is at {self._step}")
        is_late = event.step < self._step or bool(self._applied)
        return [] if is_late else self._ending.checkpoint(event, self._reception.fields)

    def _give_state(self, event: x.StateAsked) -> list[x.ShardEffect]:
        """Optimizer state exists at one version only: while a step is being applied there is none to give."""
        self._follow(event.step)
        if event.worker != self._roster.lead or event.step != self._step or self._applied:
            return [x.Decline(event.worker, "step", str(self._step))]
        return [x.GiveState(event.worker, event.step, event.buckets)]

    def _finish(self, event: x.FinishAsked) -> list[x.ShardEffect]:
        self._follow(event.step)
        if event.step != self._step or self._applied:
            return [x.Disagree(event.worker, self._roster.lead, "steps", str(event.step), str(self._step))]
        ahead = self._beginnings.beyond(self._step)
        if ahead:
            return [x.Disagree(event.worker, ahead[0], "steps", str(event.step), str(self._step + 1))]
        return self._ending.finish(event, self._reception.fields)

    def check(self) -> None:
        """Assert the invariants."""
        for gathering in self._gatherings.values():
            gathering.check()
        assert self._step in self._readable, "the version in use is not readable"
        assert not self._shown or len(self._shown) < len(self._gatherings), "a finished step is still in flight"
        unshown = {bucket for bucket in self._applied if bucket not in self._shown}
        assert self._unshown.keys() == unshown, "what was applied is forgotten"
        waiting = {b for b, gathering in self._gatherings.items() if gathering.is_complete() and b not in self._applied}
        assert self._complete.keys() == waiting, "what is complete is forgotten"
        assert self._shown <= self._applied.keys() <= self._gatherings.keys(), "what was not applied is shown"
        assert len(self._readable) <= 2, "more versions are kept than there is room for"
        if self._applied:
            assert self._step - 1 not in self._readable, "a version was overwritten while it was readable"


def _release(handle: Handle | None) -> list[x.ShardEffect]:
    return [] if handle is None else [Release(handle)]
