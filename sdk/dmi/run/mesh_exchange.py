"""A worker's part in a mesh: leaves in, partial sums out to the parameter servers, the next version back.

The worker's machine (``dmi_protocol/training/worker.py``) decides; this carries out what it wants.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import zmq

from dmi.errors import UsageError
from dmi.run.collected import Collected
from dmi.run.exchange import Begun
from dmi.run.publish import Publisher
from dmi.run.records import Ledger, ProgressReporter
from dmi.run.servers import Heard, Servers
from dmi.run.shares import Neighbour, Shares, neighbours
from dmi_protocol.codec import encode_struct
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.messages import parameters as say
from dmi_protocol.messages.roles import Ready, Roster, TrainingLaunch
from dmi_protocol.training import exchange as x
from dmi_protocol.training.layout import Definition, assign_buckets
from dmi_protocol.training.needs import needs, told
from dmi_protocol.training.step import Handle, Release, Subtree, Sum, cover
from dmi_protocol.training.tree import shares as shares_of_leaves
from dmi_protocol.training.worker import Worker
from dmi_tensor.buckets import Buckets
from dmi_tensor.checkpoint import optimizer_state
from dmi_tensor.frames import frame_of, spec_of, tensors_of
from dmi_tensor.tree_sum import DisagreementError, Share, means, share_of
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair

_NOBODY = Instant(0)
"""The worker's machine has no timer."""


_DATA_CHARACTERS = 400
_PATIENCE_S = 2.0
"""Who waits for so long without a word of a server that is there asks it again: what was said may be lost. Questions are
small; what is large is sent again only when the answer says that it did not come."""


class MeshExchange:
    """The exchange of one worker of a job; see ``dmi.run.exchange.Exchange`` for what each call means."""

    def __init__(self, child: Child, launch: TrainingLaunch, roster: Roster, keys: KeyPair) -> None:
        self._child, self._launch, self._roster = child, launch, roster
        self._publisher = Publisher(Path(launch.directory), child.tell)
        self.worker = launch.key.index
        self.is_lead = roster.assignment.lead == self.worker
        self.is_joiner = launch.key.generation != roster.start_generation
        self.leaves = launch.leaves
        self.threads: int | None = launch.threads
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._servers = Servers(self._context, keys, self.worker, launch.node, child, self._give_up)
        self._servers.follow(roster)
        self._machine: Worker | None = None
        self._colocated: dict[int, Neighbour] = {}  # by shard: the memory that we share with its primary
        self._asked: Callable[[int], None] | None = None
        """Asks a shard for what we wait for; a new primary is asked again."""
        self._arrival: bytes | None = None
        self._given: deque[int] = deque()
        self._step = self._leaf = 0
        self._is_installable = False
        self._only_lead = False
        """Has the lead all leaves of the step in flight?"""
        self._shown: dict[tuple[int, int], Heard] = {}
        self._sizes: tuple[int, ...] = ()
        self._begun: Callable[[int], None] | None = None  # says to a shard that we are in the step in flight
        self._kept: tuple[int, Callable[[], bytes]] | None = None  # the last checkpoint that the script wanted
        self._finished: set[int] = set()
        self._checkpoints = 0
        """How many there were since this worker leads."""
        self._progress = ProgressReporter(child)
        self._ledger = Ledger(Path(launch.directory))

    # Who takes part

    def _hear(self, what: str) -> Heard | Roster | None:
        """The next message of a server, or a new generation that is followed already; None when nothing came for a while.
        Whoever is quiet is asked again meanwhile."""
        heard = self._servers.hear(_PATIENCE_S / 2, what)
        if isinstance(heard, Roster):
            self._take_part(heard)
        for shard in self._servers.quiet(_PATIENCE_S):
            self._ask_again(shard)
        return heard

    def _ask_again(self, shard: int) -> None:
        """Whatever we wait for of this shard."""
        if self._asked is not None:
            self._asked(shard)
        elif self._begun is not None and self._machine is not None and self._machine.current is not None:
            self._begun(shard)
            missing = tuple(bucket for bucket in self._machine.missing() if self._owner[bucket] == shard)
            if missing:
                self._servers.send(shard, say.Pull(self._roster.generation, shard, self._step + 1, missing))

    def _take_part(self, roster: Roster) -> None:
        """A new generation: whoever is the primary of a shard now is told where we stand, and what it has not."""
        if roster.generation <= self._roster.generation or self.worker not in roster.assignment.workers:
            return
        was_lead, self._roster = self.is_lead, roster
        self.is_lead = roster.assignment.lead == self.worker
        moved = self._servers.follow(roster)
        self._finished -= set(moved)
        for shard in moved:
            self._colocated.pop(shard, None)
        for shard in self._servers.shards if self.is_lead and not was_lead else moved:
            self._say_where_we_are(shard)
        if self._machine is not None:
            buckets = tuple(b for b in range(self._buckets.layout.live) if self._owner[b] in moved)
            self._happened(x.Assigned(roster.generation, self._share(), buckets))

    def _share(self) -> tuple[int, ...]:
        """Our leaves of the step in flight."""
        if self._only_lead:
            return tuple(range(self._definition.leaves)) if self.is_lead else ()
        return self.expected_leaves()

    def _say_where_we_are(self, shard: int) -> None:
        if self._machine is not None:
            self._greet(shard)
        self._ask_for_checkpoint(shard)
        if self._asked is not None:
            self._asked(shard)
        if self._begun is not None:
            self._begun(shard)

    def _send_all(self, send: Callable[[int], None]) -> None:
        for shard in self._servers.shards:
            send(shard)

    # The conversation begins

    def resume(self) -> bytes | None:
        """See ``Exchange.resume``."""
        if self._roster.restore is None or self.is_joiner:
            return None

        def ask(shard: int) -> None:
            if shard == 0:
                self._servers.send(shard, say.AskResume(self._roster.generation, shard))

        self._asked = ask
        ask(0)
        while True:
            heard = self._hear("before the first step")
            if isinstance(heard, Heard) and isinstance(heard.message, say.Resume):
                self._asked = None
                return _extra(heard)
            if isinstance(heard, Heard):
                self._take(heard)

    def welcome(self) -> bytes | None:
        """See ``Exchange.welcome``."""
        return self._arrival

    def open(self, definition: Definition, buckets: Buckets, fingerprint: Sequence[tuple[str, str]], kept: int) -> int:
        """See ``Exchange.open``."""
        self._definition, self._buckets = definition, buckets
        self._fingerprint = say.Fingerprint(tuple((name, str(value)) for name, value in fingerprint))
        layout = buckets.layout
        self._owner = assign_buckets(layout, len(self._roster.assignment.shards))
        if self.is_lead and not self.is_joiner:
            self._tell_needs(kept)
        share = self._share()
        self._machine = Worker(x.Assigned(self._roster.generation, share), layout.live)
        local = [shard for shard in self._servers.shards if self._servers.is_local(shard) and not self.is_joiner]
        self._colocated = neighbours(layout, self._owner, local, cover(share))
        colocated = {
            b: self._colocated[self._owner[b]] for b in range(layout.live) if self._owner[b] in self._colocated
        }
        self._shares = Shares(layout, colocated)
        for shard in self._servers.shards:
            self._greet(shard, self._colocated.get(shard))
        self._send_all(self._bring_initial)
        self._asked = self._greet
        step = self._await_welcomes()
        for found in self._colocated.values():
            found.segment.withdraw()
        if self._roster.restore is not None or self.is_joiner:
            self._fetch(step)
        self._asked = None
        self._progress.begin()
        return step

    def _tell_needs(self, kept: int) -> None:
        """The first line of the job's log."""
        assignment = self._roster.assignment
        found = needs(self._definition, self._buckets.layout, assignment, kept)
        print(told(found, len(assignment.workers), len(self._roster.servers)), flush=True)

    def _greet(self, shard: int, colocated: Neighbour | None = None) -> None:
        """Memory is offered once, before it has lost its name."""
        name, size = (None, 0) if colocated is None else (colocated.segment.name, colocated.segment.size)
        definition = encode_struct(self._definition)
        hello = say.Hello(self._roster.generation, shard, self.worker, self._fingerprint, definition, name, size)
        self._servers.send(shard, hello)

    def _bring_initial(self, shard: int, only: Collection[int] | None = None) -> None:
        """From the lead, when there is no other version yet: all buckets of a shard, or those that it lacks."""
        if not self.is_lead or self._roster.restore is not None or self.is_joiner:
            return
        for bucket in self._buckets.layout.buckets:
            if self._owner[bucket.index] == shard and (only is None or bucket.index in only):
                tensor = None if bucket.kind == "metrics" else self._buckets.bucket(bucket.index)
                specs, frames = ((), []) if tensor is None else ((spec_of(tensor),), [frame_of(tensor)])
                initial = say.Initial(self._roster.generation, shard, bucket.index, specs)
                self._servers.send(shard, initial, frames)

    def _await_welcomes(self) -> int:
        """The step that we begin. Shards may be a step apart: the latest one counts, and the others will be there."""
        welcomes: dict[int, Heard] = {}
        while len(welcomes) < len(self._roster.assignment.shards):
            heard = self._hear("before the first step")
            if isinstance(heard, Heard) and isinstance(heard.message, say.Welcome):
                if heard.message.shared is not None:
                    self._servers.attach(heard.shard, heard.message.shared, heard.message.shared_bytes)
                welcomes[heard.shard] = heard
            elif isinstance(heard, Heard) and isinstance(heard.message, say.Lacking):
                self._bring_initial(heard.shard, heard.message.buckets)
            elif isinstance(heard, Heard):
                self._take(heard)
        if not self.is_joiner:
            return min(_welcome(heard).step for heard in welcomes.values())
        latest = max(welcomes.values(), key=lambda heard: _welcome(heard).step)
        self._arrival = _extra(latest)
        return _welcome(latest).step

    def _fetch(self, version: int) -> None:
        """The version that the servers have; frozen tensors are as the script made them."""
        missing = set(range(self._buckets.layout.metrics))
        self._asked = lambda shard: self._pull(version, [b for b in missing if self._owner[b] == shard])
        self._send_all(self._asked)
        while missing:
            heard = self._hear("before the first step")
            if isinstance(heard, Heard) and isinstance(heard.message, say.Show):
                tensor = self._tensor(heard)
                if heard.message.version == version and heard.message.bucket in missing and tensor is not None:
                    self._buckets.bucket(heard.message.bucket).copy_(tensor)
                    missing.discard(heard.message.bucket)
            elif isinstance(heard, Heard):
                self._take(heard)

    # A step

    def begin(self, begun: Begun, extra: Callable[[], bytes]) -> None:
        """See ``Exchange.begin``."""
        self._step, self._sizes, self._is_installable = begun.step, begun.leaf_sizes, False
        self._only_lead = begun.only_lead

        def begin(shard: int) -> None:
            kept = (extra(),) if self.is_lead and self._roster.joiners else ()
            generation = self._roster.generation
            told = say.Begin(
                generation,
                shard,
                begun.step,
                begun.leaf_sizes,
                begun.hyper,
                begun.written,
                begun.data[:_DATA_CHARACTERS],
            )
            self._servers.send(shard, told, kept)

        self._begun = begin
        self._send_all(begin)
        if self._arrival is not None:
            self._arrival = None
            self._child.tell(Ready())
        self._happened(x.StepBegan(begun.step, self._share()))

    def expected_leaves(self) -> tuple[int, ...]:
        """See ``Exchange.expected_leaves``."""
        assignment = self._roster.assignment
        shares = shares_of_leaves(assignment.speeds, self._definition.leaves)
        return tuple(shares[assignment.workers.index(self.worker)])

    def _ask_for_checkpoint(self, shard: int) -> None:
        """Only the lead's wish counts; who becomes the lead asks again for what the one before may have asked for."""
        if self.is_lead and self._kept is not None and self._kept[0] == self._step:
            kept = (self._kept[1](),) if shard == 0 else ()
            self._servers.send(shard, say.Checkpoint(self._roster.generation, shard, self._step), kept)

    def next_leaf(self) -> int | None:
        """See ``Exchange.next_leaf``."""
        self._servers.begin_waiting()
        while not self._given and not self._is_installable:
            heard = self._hear(f"in step {self._step}")
            if isinstance(heard, Heard):
                self._take(heard)
        if not self._given:
            return None
        self._leaf = self._given.popleft()
        return self._leaf

    def take(self, bucket: int) -> Share:
        """See ``Exchange.take``."""
        return self._shares.take(bucket, self._leaf)

    def contribute(self, leaf: int, shares: Mapping[int, Share]) -> None:
        """See ``Exchange.contribute``."""
        self._ledger.note(self._step, leaf, self._sizes[leaf])
        for bucket in range(self._buckets.layout.live):
            share = shares.get(bucket)
            handle = None if share is None else self._shares.put(bucket, share)
            self._happened(x.Computed(self._step, leaf, bucket, handle))

    def _happened(self, event: x.WorkerEvent) -> None:
        assert self._machine is not None
        for effect in self._machine.step(_NOBODY, event):
            match effect:
                case Sum(left, right):
                    self._sum(left, right)
                case Release(handle):
                    self._shares.release(handle)
                case x.Compute(_, leaf):
                    self._given.append(leaf)
                case x.Push():
                    self._push(effect)
                case x.PullBuckets(version, buckets):
                    self._pull(version, buckets)
                case x.InstallVersion():
                    self._given.clear()
                    self._is_installable = True

    def _sum(self, left: Handle, right: Handle) -> None:
        try:
            self._shares.add(left, right)
        except DisagreementError as error:
            raise UsageError(
                f"the leaves of a step disagree about the buffer {error}: make it a function of the step, "
                "or keep it out of the module"
            ) from error

    def _push(self, push: x.Push) -> None:
        shard = self._owner[push.bucket]
        share = None if push.handle is None else self._shares.get(push.handle)
        tensor = None if share is None else share.tensor
        is_colocated = share is not None and shard in self._colocated
        region = self._shares.region(push.bucket, share) if share is not None and is_colocated else None
        message = say.Contribution(
            self._roster.generation,
            shard,
            push.step,
            push.bucket,
            push.subtree.first,
            push.subtree.leaves,
            () if tensor is None else (spec_of(tensor),),
            b"" if share is None else share.detail,
            region,
        )
        frames = [] if tensor is None or region is not None else [frame_of(tensor)]
        tracker = self._servers.send(shard, message, frames)
        if push.handle is not None:
            self._shares.sent(push.handle, tracker)

    def _pull(self, version: int, buckets: Sequence[int]) -> None:
        for shard in self._servers.shards:
            wanted = tuple(bucket for bucket in buckets if self._owner[bucket] == shard)
            if wanted:
                self._servers.send(shard, say.Pull(self._roster.generation, shard, version, wanted))

    def _take(self, heard: Heard) -> None:
        """A server's message, at any time."""
        match heard.message:
            case say.Show(_, shard, version, bucket) if self._machine is not None:
                if self._owner[bucket] != shard:
                    self._give_up("peer-broken", f"{self._servers.name(heard.shard)} shows a bucket that it has not")
                self._shown[version, bucket] = heard
                self._happened(x.Shown(version, bucket))
            case say.Outstanding(_, _, step, held) if self._machine is not None:
                for bucket, subtrees in held:
                    self._happened(x.OutstandingHeard(step, bucket, tuple(Subtree(*subtree) for subtree in subtrees)))
            case say.Declined(_, kind, text):
                self._give_up("declined", f"{self._servers.server_name(heard.server)} declines ({kind}): {text}")
            case say.Finished():
                self._finished.add(heard.shard)
            case _:
                pass

    def metrics(self) -> Mapping[str, float]:
        """See ``Exchange.metrics``."""
        return means(self._told())

    def value(self) -> bytes:
        """See ``Exchange.value``."""
        told = self._told()
        return b"" if told is None else told.value

    def _told(self) -> Share | None:
        """The metrics bucket of the next version."""
        shown = self._shown[self._step + 1, self._buckets.layout.metrics].message
        assert isinstance(shown, say.Show)
        return share_of(None, shown.detail, 0) if shown.detail else None

    def begin_again(self, why: str) -> NoReturn:
        """See ``Exchange.begin_again``."""
        self._give_up("begins-again", why)

    def install(self) -> None:
        """See ``Exchange.install``."""
        version = self._step + 1
        for bucket in range(self._buckets.layout.metrics):
            tensor = self._tensor(self._shown[version, bucket])
            if tensor is not None:
                self._buckets.bucket(bucket).copy_(tensor)
        self._shown = {key: heard for key, heard in self._shown.items() if key[0] > version}
        self._step, self._begun = version, None

    def _tensor(self, heard: Heard) -> torch.Tensor | None:
        """A shown bucket where it lies: in a frame, or in the memory of the server beside us; None when it is as before."""
        message = heard.message
        assert isinstance(message, say.Show)
        if not message.tensors:
            return None
        if message.region is None:
            return tensors_of(message.tensors, heard.frames)[0]
        view = self._servers.shared(heard.shard, message.region, message.tensors[0].length_bytes)
        return tensors_of(message.tensors, [view])[0]

    def progress(self, steps: int | None, samples: int, loss: float | None) -> None:
        """See ``Exchange.progress``."""
        self._progress.made(self._step, steps, samples, loss, tells=self.is_lead)

    def checkpoint(self, step: int, extra: Callable[[], bytes]) -> None:
        """See ``Exchange.checkpoint``."""
        self._kept = (step, extra)
        self._send_all(self._ask_for_checkpoint)

    def checkpointed(self, step: int, tensors: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """See ``Exchange.checkpointed``. The lead does it, which counts from when it became the lead."""
        if not self.is_lead:
            self._checkpoints = 0
            return
        self._checkpoints += 1
        told = self._child.followers
        for follower, files in zip(told.followers, told.files, strict=True):
            if self._checkpoints % follower.every == 0:
                self._publisher.hand_over(follower, files, step, tensors())

    def publish(
        self, name: str, step: int, tensors: Mapping[str, torch.Tensor], model: str, inputs: Sequence[str]
    ) -> None:
        """See ``Exchange.publish``. The lead does it."""
        if self.is_lead:
            self._publisher.publish(name, step, tensors, model, inputs)

    def optimizer_state(self) -> dict[str, object]:
        """See ``Exchange.optimizer_state``. Only the lead can have it; raises ``UsageError`` elsewhere."""
        if not self.is_lead:
            raise UsageError("only the lead worker can have the optimizer's state; ask run.is_lead first")
        found = Collected(self._buckets.layout, self._owner)

        def ask(shard: int, buckets: tuple[int, ...]) -> None:
            if buckets:
                self._servers.send(shard, say.AskState(self._roster.generation, shard, self._step, buckets))

        self._asked = lambda shard: ask(shard, found.under_way(shard))
        self._send_all(lambda shard: ask(shard, found.next(shard)))
        while not found.is_whole:
            heard = self._hear("while it sends the optimizer's state")
            if isinstance(heard, Heard) and isinstance(heard.message, say.State):
                self._collect(found, heard)
                ask(heard.shard, found.next(heard.shard))
            elif isinstance(heard, Heard):
                self._take(heard)
        self._asked = None
        return optimizer_state(self._definition, self._buckets.layout, found.hyper, found.state)

    def _collect(self, found: Collected, heard: Heard) -> None:
        assert isinstance(heard.message, say.State)
        try:
            found.take(heard.message, heard.frames)
        except RemoteProtocolError as error:
            self._give_up("peer-broken", f"{self._servers.name(heard.shard)} sends no optimizer state: {error}")

    def close(self, step: int, extra: bytes, kept: tuple[tuple[str, str], ...]) -> None:
        """See ``Exchange.close``."""
        self._publisher.close()

        def finish(shard: int) -> None:
            first = shard == 0
            message = say.Finish(self._roster.generation, shard, step, kept if first else ())
            self._servers.send(shard, message, (extra,) if first else ())

        self._asked = lambda shard: None if shard in self._finished else finish(shard)
        self._send_all(finish)
        while len(self._finished) < len(self._roster.assignment.shards):
            heard = self._hear("after the last step")
            if isinstance(heard, Heard):
                self._take(heard)

    def stay(self) -> NoReturn:
        """Be there until the daemon ends us, when the job is over: whoever takes the place of a server that was lost with its
        final part is asked for another one. Only after ``close``."""
        while True:
            heard = self._hear("after the end")
            if isinstance(heard, Heard):
                self._take(heard)

    def _give_up(self, kind: str, line: str) -> NoReturn:
        self._child.fail(kind, line, starting=False)


def _welcome(heard: Heard) -> say.Welcome:
    assert isinstance(heard.message, say.Welcome)
    return heard.message


def _extra(heard: Heard) -> bytes:
    """What the lead keeps of the run; nothing before the first step."""
    return bytes(heard.frames[0]) if heard.frames else b""
