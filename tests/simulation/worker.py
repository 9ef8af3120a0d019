"""A worker's process: a script of some steps around the pure machine."""

import hashlib

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.identity import BlobHash, PublicKey
from dmi_protocol.messages.roles import (
    Completed,
    Followers,
    Lease,
    Progressed,
    Published,
    Ready,
    Role,
    RoleEvent,
    RoleKey,
    Roster,
    TrainingLaunch,
)
from dmi_protocol.model import ModelFile
from dmi_protocol.training import exchange as x
from dmi_protocol.training.silence import Silences
from dmi_protocol.training.step import Release, Sum
from dmi_protocol.training.tree import shares
from dmi_protocol.training.worker import Worker
from tests.simulation.node import Node
from tests.simulation.process import Beat, Said, exits, tell_daemon
from tests.simulation.sockets import BUCKETS, Sockets, owned
from tests.simulation.tensors import Tensor, Tensors
from tests.simulation.trouble import demand

_WAIT_MS = 250
_ROUND = 5
_COMPUTE_MS = 400
_FIELDS = (("torch", "fake"),)


class ScriptedWorker:
    """With a script of ``steps`` steps and a checkpoint after every third."""

    def __init__(self, sockets: Sockets, node: Node, launch: TrainingLaunch) -> None:
        self.key = launch.key
        self.public_key = PublicKey(f"{len(sockets.processes)}".ljust(40, "."))
        self.node = node
        self.boot_count = node.boot_count
        self.is_alive = True
        self._sockets = sockets
        self._leaves = launch.leaves or 4
        self._steps = int(launch.args[0])
        self._tensors = Tensors(str(self.key))
        self._roster: Roster | None = None
        self._machine: Worker | None = None
        self.is_idle = False
        """Has it begun, without a leaf to compute?"""
        self._version = 0
        self._parameters = [0] * BUCKETS
        self._shown: dict[tuple[int, int], int] = {}
        self._welcomes: dict[int, int] = {}
        """By shard: the step at which we were welcome."""
        self._followers = Followers(())
        self._checkpoints = 0
        self._finished: set[int] = set()
        self._has_completed = False
        self._heard_at = 0
        self._beat_at = 0
        self._heard_by: dict[int, int] = {}
        """When each primary was heard, if only that it is there."""
        self._silences = Silences()
        self._is_waiting = False
        self._phase = "greeting"
        """``greeting``, ``fetching``, ``training``, ``finishing``."""

    def follow(self, followers: Followers) -> None:
        """Who follows by checkpoints from now on."""
        for follower in followers.followers:
            files = {file.blob for file in follower.content.files}
            demand("follow", files <= self.node.blobs.keys(), f"{self.key} is to publish what it has not: {files}")
        self._followers = followers

    # Who takes part

    def roster(self, roster: Roster) -> None:
        """See ``Process``."""
        before, self._roster = self._roster, roster
        leaves = self._share(roster)
        self.is_idle = not leaves
        if before is None or self._machine is None:
            self._machine = Worker(x.Assigned(roster.generation, leaves), BUCKETS)
            self._greet(range(len(roster.assignment.shards)))
            self._wait()
            return
        moved = [s for s, r in enumerate(roster.assignment.shards) if r.primary != before.assignment.shards[s].primary]
        self._finished -= set(moved)
        for shard in moved:
            self._welcomes.pop(shard, None)
        self._greet(moved)
        is_new_lead = self._is_lead() and before.assignment.lead != self.key.index
        self._say_where_we_are(range(len(roster.assignment.shards)) if is_new_lead else moved)
        buckets = tuple(bucket for shard in moved for bucket in owned(shard, len(roster.assignment.shards)))
        if self._phase == "fetching":
            self._pull(self._version, buckets)
        self._happened(x.Assigned(roster.generation, leaves, buckets))

    def lease(self, lease: Lease) -> None:
        """See ``Process``; no worker needs one."""

    def _share(self, roster: Roster) -> tuple[int, ...]:
        if self._version % _ROUND == _ROUND - 1:  # a round in which the lead alone has something to say
            self._sockets.counters["rounds of the lead"] += 1
            return tuple(range(self._leaves)) if roster.assignment.lead == self.key.index else ()
        place = roster.assignment.workers.index(self.key.index)
        return tuple(shares(roster.assignment.speeds, self._leaves)[place])

    def _is_lead(self) -> bool:
        return self._roster is not None and self._roster.assignment.lead == self.key.index

    def _is_founder(self) -> bool:
        return self._roster is not None and self.key.generation == self._roster.start_generation

    def _greet(self, shards: "range | list[int]") -> None:
        assert self._roster is not None
        for shard in shards:
            self._say(shard, x.Greeted(self.key.index, _FIELDS, b"model"))
            self._bring_initial(shard)

    def _bring_initial(self, shard: int, only: tuple[int, ...] | None = None) -> None:
        assert self._roster is not None
        gives = self._is_lead() and self._roster.restore is None and self._phase == "greeting"
        for bucket in owned(shard, len(self._roster.assignment.shards)) if gives else ():
            if only is not None and bucket not in only:
                continue
            self._say(shard, x.Initialized(self.key.index, bucket))

    def _say_where_we_are(self, shards: "range | list[int]") -> None:
        """To those who do not know: a primary that was promoted, or all when we lead from now on."""
        assert self._machine is not None
        for shard in shards:
            self._bring_initial(shard)
            if self._machine.current is not None:
                self._ask_for_checkpoint(shard)
                self._begin(shard)
            elif self._phase == "finishing":
                self._say(shard, x.FinishAsked(self.key.index, self._version, b""))

    # What is said here

    def hear(self, sender: RoleKey, said: Said) -> None:
        """See ``Process``."""
        now = self._sockets.clock.now
        if sender.index in self._heard_by:
            self._heard_by[sender.index] = now
        if not isinstance(said.event, Beat):
            self._heard_at = now
            self._take(said)

    def _take(self, said: Said) -> None:
        if self._roster is None or self._machine is None:
            return
        match said.event:
            case x.WelcomeWorker(_, step, extra):
                self._welcome(said.shard, step, extra)
            case x.SayFinished():
                self._finished.add(said.shard)
                if len(self._finished) == len(self._roster.assignment.shards) and not self._has_completed:
                    self._has_completed = True
                    self._tell_daemon(Completed())
            case x.Shown(version, bucket):
                assert said.shown is not None
                self._shown[version, bucket] = said.shown
                if self._phase == "fetching":
                    self._fetched()
                else:
                    self._see(version, bucket)
                    self._happened(said.event)
            case x.TellOutstanding(_, step, held):
                for bucket, subtrees in held:
                    self._happened(x.OutstandingHeard(step, bucket, subtrees))
            case x.TellLacking(_, buckets):
                self._bring_initial(said.shard, buckets)
            case x.Decline():
                exits(self, 1)
            case _:
                raise AssertionError(f"a server said {said.event}")

    def _see(self, version: int, bucket: int) -> None:
        assert self._roster is not None
        place = (self.key.job, self._roster.start_generation, bucket)
        self._sockets.seen[place] = max(version, self._sockets.seen.get(place, 0))

    def _welcome(self, shard: int, step: int, extra: bytes | None) -> None:
        assert self._roster is not None
        if self._phase != "greeting":
            return
        demand("joiners", (extra is None) == self._is_founder(), f"{self.key} is welcomed with {extra!r}")
        self._welcomes[shard] = step
        if len(self._welcomes) < len(self._roster.assignment.shards):
            return
        if self._is_founder() and self._roster.restore is None:
            self._train()
            return
        self._phase = "fetching"
        self._version = max(self._welcomes.values())
        self._pull(self._version, range(BUCKETS))

    def _pull(self, version: int, buckets: "range | tuple[int, ...]") -> None:
        for bucket in buckets:
            self._say(self._shard_of(bucket), x.Pulled(self.key.index, version, (bucket,)))

    def _fetched(self) -> None:
        if len([1 for version, _ in self._shown if version == self._version]) == BUCKETS:
            for bucket in range(BUCKETS):
                self._parameters[bucket] = self._shown.pop((self._version, bucket))
            if not self._is_founder():
                self._sockets.counters["joiners"] += 1
                self._tell_daemon(Ready())
            self._train()

    # The script

    def _train(self) -> None:
        self._phase = "training"
        self._next_step()

    def _next_step(self) -> None:
        assert self._roster is not None
        step, shards = self._version, range(len(self._roster.assignment.shards))
        if self._is_lead() and step and (step % 3 == 0 or step == self._steps):
            self._tell_daemon(Progressed(step, self._steps, 1.0, 0.5))
        for shard in shards:
            self._ask_for_checkpoint(shard)
        if self._is_lead() and step and step % 3 == 0 and step != self._roster.restore:
            self._publish(step)
        if step >= self._steps:
            self._phase = "finishing"
            for shard in shards:
                self._say(shard, x.FinishAsked(self.key.index, step, b""))
            return
        for shard in shards:
            self._begin(shard)
        self._happened(x.StepBegan(step, self._share(self._roster)))

    def _publish(self, step: int) -> None:
        """For those who follow by checkpoints."""
        self._checkpoints += 1
        for follower in self._followers.followers:
            if self._checkpoints % follower.every == 0:
                blob = BlobHash(hashlib.sha256(f"{self.key.job} {step}".encode()).hexdigest())
                self.node.blobs[blob] = {}
                content = replace(follower.content, files=(*follower.content.files, ModelFile("weights", blob, 1)))
                self._tell_daemon(Published(follower.name, step, content, ("", ""), 1))
                self._sockets.counters["checkpoints published"] += 1

    def _ask_for_checkpoint(self, shard: int) -> None:
        assert self._roster is not None
        step = self._version
        if self._is_lead() and step and step % 3 == 0 and step != self._roster.restore:
            self._say(shard, x.CheckpointAsked(self.key.index, step, b""))

    def _begin(self, shard: int) -> None:
        assert self._roster is not None
        extra = b"kept" if self._is_lead() and self._roster.joiners else None
        self._say(shard, x.Began(self.key.index, self._version, (1,) * self._leaves, b"lr", extra))

    def _happened(self, event: x.WorkerEvent) -> None:
        assert self._machine is not None
        for effect in self._machine.step(self._sockets.clock.now, event):
            match effect:
                case Sum() | Release():
                    self._tensors.do(effect)
                case x.Compute(step, leaf):
                    delay = 1 + int(_COMPUTE_MS * self._sockets.clock.random.random())
                    self._sockets.later(self, delay, self._compute, step, leaf)
                case x.Push(step, bucket, subtree, handle):
                    told = x.Contributed(self.key.index, step, bucket, subtree, None)
                    self._say(self._shard_of(bucket), told, self._tensors.get(handle))
                case x.PullBuckets(version, buckets):
                    self._pull(version, buckets)
                case x.InstallVersion(version):
                    self._install(version)
        self._machine.check()

    def _install(self, version: int) -> None:
        for bucket in range(BUCKETS):
            self._parameters[bucket] = self._shown.pop((version, bucket))
        whole = set(self._parameters) == {version}
        demand("versions", whole, f"{self.key} installs {self._parameters} as version {version}")
        self._version = version
        self._sockets.later(self, 1, self._go_on, version)

    def _go_on(self, version: int) -> None:
        if self.is_alive and self._version == version:
            self._next_step()

    def _compute(self, step: int, leaf: int) -> None:
        if not self.is_alive or self._machine is None or self._machine.current != step:
            return
        demand("versions", set(self._parameters) == {step}, f"{self.key} computes step {step} on {self._parameters}")
        for bucket in range(BUCKETS):
            tensor = Tensor(1 << leaf, self._parameters[bucket])
            self._happened(x.Computed(step, leaf, bucket, self._tensors.put(tensor)))

    def _wait(self) -> None:
        """Patience with silence: whatever may be lost is asked for again."""
        if not self.is_alive or self._machine is None:
            return
        if self._sockets.clock.now - self._heard_at >= _WAIT_MS:
            self._ask_again()
        self._mind_silence()
        self._sockets.later(self, _WAIT_MS, self._wait)

    def _ask_again(self) -> None:
        assert self._roster is not None
        assert self._machine is not None
        shards = range(len(self._roster.assignment.shards))
        if self._phase == "greeting":
            for shard in shards:
                self._say(shard, x.Greeted(self.key.index, _FIELDS, b"model"))
        elif self._phase == "fetching":
            missing = [bucket for bucket in range(BUCKETS) if (self._version, bucket) not in self._shown]
            self._pull(self._version, tuple(missing))
        elif self._phase == "finishing":
            for shard in (shard for shard in shards if shard not in self._finished):
                self._say(shard, x.FinishAsked(self.key.index, self._version, b""))
        elif self._machine.current is not None:
            for shard in shards:
                self._begin(shard)
            self._happened(x.Waited())

    def _mind_silence(self) -> None:
        """We tell the primaries that we are here, and report who does not answer."""
        assert self._roster is not None
        now, primaries = self._sockets.clock.now, {replicas.primary for replicas in self._roster.assignment.shards}
        if now - self._beat_at >= limits.PEER_BEAT_MS:
            self._beat_at = now
            for shard in range(len(self._roster.assignment.shards)):
                self._say(shard, Beat())
        self._heard_by = {server: self._heard_by.get(server, now) for server in primaries}
        silent: dict[tuple[Role, int], int] = {("server", s): now - heard for s, heard in self._heard_by.items()}
        for report in self._silences.look(self._roster.generation, silent):
            self._tell_daemon(report)

    # To the servers

    def _shard_of(self, bucket: int) -> int:
        assert self._roster is not None
        return bucket % len(self._roster.assignment.shards)

    def _say(self, shard: int, event: object, tensor: Tensor | None = None) -> None:
        assert self._roster is not None
        endpoint = self._roster.primary(shard)
        self._sockets.say(self, endpoint.public_key, Said(shard, self._roster.generation, event, tensor))

    def _tell_daemon(self, event: RoleEvent) -> None:
        tell_daemon(self, self._sockets.clock, event)
