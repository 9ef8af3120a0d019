"""What must hold at every moment, whatever breaks. Each checker sees all nodes at once, which no node does."""

from collections import Counter
from collections.abc import Set

from msgspec import msgpack

from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import (
    Admit,
    BindRole,
    Command,
    CommitSlice,
    CompleteRole,
    Finish,
    HoldBlob,
    KeepPart,
    LoseRole,
    MarkBusy,
    Place,
    Reassign,
    Recruit,
    ReopenSlices,
    SetCheckpointHolders,
)
from dmi_protocol.cluster.holding import Holding
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.consensus.quorum import is_quorum
from dmi_protocol.effects import Answer, StartRole
from dmi_protocol.identity import JobId, NodeId, PublicKey, RequestId
from dmi_protocol.kinds.any_job import AnyJob
from dmi_protocol.kinds.batch.state import BatchJob, SliceResult
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import ENDED, SUCCEEDED
from dmi_protocol.kinds.training.state import Checkpoint, TrainingJob
from dmi_protocol.messages.consensus import Entry, Noop, Voted, Voters
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.peer import Peer
from dmi_protocol.reasons import PairSilent, Reason
from tests.simulation.clock import Clock
from tests.simulation.node import Node
from tests.simulation.replica import result_of
from tests.simulation.trouble import Violation, demand

_DIGEST_EVERY = 6
"""Entries: states that differ once stay different, so not every one of them need be looked at."""
_ON_ITS_WAY_MS = 5_000
"""A leader that has not heard of it yet may have asked for the opposite, and be slow."""


class Agreement:
    """One leader per term; committed entries are never lost or changed; equal state at equal index."""

    def __init__(self, clock: Clock, nodes: dict[NodeId, Node], begun: ClusterState, counters: Counter[str]) -> None:
        self._nodes = nodes
        self._counters = counters
        self._leaders: dict[int, NodeId] = {}
        self._votes: dict[tuple[NodeId, int], NodeId] = {}
        self._committed: dict[int, Entry] = {}
        self._digests: dict[int, int] = {}
        self._seen: dict[NodeId, tuple[int, int]] = {}
        """By node: its boot count, and up to where its commits were looked at."""
        self.state = ClusterState.decode(begun.encode())
        """The dumb twin: one replica that applies every committed entry, one after another."""
        self.commit = begun.applied
        self.fencing = Fencing()
        self.busy = Busy(clock, counters)
        self.slices = Results(counters)
        self.checkpoints = Checkpoints()
        self.expulsions = Expulsions()
        self.promises = Promises(counters)

    def votes(self, voter: NodeId, candidate: NodeId, vote: Voted) -> None:
        """A vote left a node: it votes once in a term, whatever befalls it (3.4)."""
        if vote.granted:
            other = self._votes.setdefault((voter, vote.term), candidate)
            demand("votes", other == candidate, f"{voter} votes for {other} and for {candidate} in term {vote.term}")

    def turned(self, node: Node, peer: Peer) -> None:
        """A node has made a turn, and what it wrote is durable."""
        raft, me = peer.raft, node.me.node
        if raft.is_leader:
            if raft.term not in self._leaders:
                self._counters["elections"] += 1
            other = self._leaders.setdefault(raft.term, me)
            if other != me:
                raise Violation("leaders", f"{other} and {me} both lead term {raft.term}")
        seen = self._seen.get(me)
        if seen is None or seen[0] != node.boot_count:
            seen = (node.boot_count, 0)
        if raft.commit > seen[1]:
            for index in range(seen[1] + 1, raft.commit + 1):
                self._commits(node, index)
            for job in self.state.jobs.values():
                if isinstance(job, TrainingJob) and job.checkpoint is not None:
                    self._is_kept(job, job.checkpoint)
            for owner in self.state.holdings():
                if not isinstance(owner, TrainingJob):
                    self._are_kept(owner)
            self._seen[me] = (node.boot_count, raft.commit)
            self._applies(node, peer)

    def _commits(self, node: Node, index: int) -> None:
        entry = node.disk.history.get(index)
        if entry is None:
            return
        known = self._committed.get(index)
        if known is None:
            self._committed[index] = entry
            self._is_safe(node, entry)
            self._advance()
            return
        if known is not entry and known != entry:
            raise Violation("committed", f"entry {index} was {known} and is {entry} on {node.name}")

    def _is_safe(self, node: Node, entry: Entry) -> None:
        """Nobody can be elected any more who does not have the entry (3.6.3), should everybody crash now."""
        for candidate in node.peer.raft.voters if node.peer is not None else ():
            if candidate not in self._nodes or self._nodes[candidate].disk.has(entry):
                continue
            disk = self._nodes[candidate].disk
            voters = disk.voters()
            granting = [v for v in voters if v in self._nodes and self._nodes[v].disk.last <= disk.last]
            can_win = candidate in voters and is_quorum(voters, granting)
            what = f"{node.name} commits entry {entry.index} of term {entry.term} that {candidate} could still undo"
            demand("committed", not can_win, what)

    def _advance(self) -> None:
        while (entry := self._committed.get(self.commit + 1)) is not None:
            self.commit += 1
            if isinstance(entry.command, Noop | Voters):
                self._counters["voter changes"] += isinstance(entry.command, Voters)
                self.state.applied = entry.index
            else:
                self.fencing.before(self.state, entry.command)
                self.busy.before(self.state, entry.command)
                apply(self.state, entry.index, entry.command)
                self.fencing.after(self.state, entry.command)
                self.busy.after(self.state, entry.command)
                self.slices.after(self.state, entry.command)
                self.checkpoints.after(self.state, entry.command)
                self.expulsions.after(self.state)
                self.promises.after(self.state, entry.command)
            if self.commit % _DIGEST_EVERY == 0:
                self._digests[self.commit] = digest(self.state)

    def _is_kept(self, job: TrainingJob, checkpoint: Checkpoint) -> None:
        """What counts as a checkpoint is on the disks that it is said to be on, and on two where there are two."""
        for part in checkpoint.parts:
            holders = [node for node in part.nodes if part.blob in self._nodes[node].blobs or self._is_ahead(node)]
            if len(holders) < min(2, len(part.nodes)):
                raise Violation("parts", f"{job.id}: shard {part.shard} of step {checkpoint.step} is only on {holders}")

    def _are_kept(self, owner: Holding) -> None:
        """A result, and a file of a model, is on the disks that it is said to be on."""
        for blob, nodes in owner.kept():
            for node in nodes:
                if blob not in self._nodes[node].blobs and not self._is_ahead(node):
                    raise Violation("blobs", f"{owner.id}: {node} has not {blob}, which it is said to have")

    def _is_ahead(self, node: NodeId) -> bool:
        """It has done what later entries say, and its writes are under way."""
        peer = self._nodes[node].peer
        return peer is not None and peer.raft.commit > self.commit

    def _applies(self, node: Node, peer: Peer) -> None:
        state = peer.state
        if state is None or state.applied % _DIGEST_EVERY:
            return
        expected = self._digests.get(state.applied)
        if expected is not None:
            demand("states", digest(state) == expected, f"{node.name} differs from the others at {state.applied}")


class Expulsions:
    """Only who was removed ends for good."""

    def __init__(self) -> None:
        self._members: set[NodeId] = set()
        self._removed: set[NodeId] = set()
        self._retired: dict[NodeId, Reason] = {}

    def after(self, state: ClusterState) -> None:
        """A command was applied."""
        self._removed |= self._members - state.members.keys()
        self._members = set(state.members)

    def retires(self, node: NodeId, reason: Reason) -> None:
        """A node takes itself to be a member no more."""
        self._retired[node] = reason

    def at_end(self) -> None:
        """While it happens a node may know of a removal a moment before the twin does."""
        for node, reason in self._retired.items():
            demand("expulsions", node in self._removed, f"{node} was never removed, and ends: {reason}")


def digest(state: ClusterState) -> int:
    """Equal for equal states."""
    return hash(msgpack.encode(state))


class Checkpoints:
    """One counts when it is on two nodes, where somebody is to keep second copies at that moment."""

    def __init__(self) -> None:
        self._known: dict[JobId, Checkpoint] = {}

    def after(self, state: ClusterState, command: Command) -> None:
        """``command`` was applied."""
        job = state.jobs.get(command.job) if isinstance(command, KeepPart | SetCheckpointHolders) else None
        if not isinstance(job, TrainingJob) or job.checkpoint is None:
            return
        known = self._known.get(job.id)
        self._known[job.id] = job.checkpoint
        if known is None or known.step != job.checkpoint.step:
            copies = min(len(part.nodes) for part in job.checkpoint.parts)
            is_whole = copies >= (2 if job.checkpoint_holders else 1)
            demand(
                "parts", is_whole, f"{job.id}: {job.checkpoint} counts, and {job.checkpoint_holders} are to have copies"
            )


class Results:
    """Each slice has one result: it is committed once, and again only when it was lost with all who had it. A batch inference
    succeeds with all of them, and with nothing else."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._known: dict[JobId, dict[int, SliceResult]] = {}

    def after(self, state: ClusterState, command: Command) -> None:
        """``command`` was applied."""
        if isinstance(command, CommitSlice):
            again = command.slice in self._known.get(command.role.job, {})
            self._counters["slices computed twice"] += again
            self._changed(state, command.role.job, frozenset())
        elif isinstance(command, HoldBlob):
            self._changed(state, JobId(command.owner), frozenset())
        elif isinstance(command, ReopenSlices | Finish):
            gone = frozenset(command.gone) if isinstance(command, ReopenSlices) else frozenset()
            self._changed(state, command.job, gone)

    def _changed(self, state: ClusterState, name: JobId, gone: Set[NodeId]) -> None:
        job = state.jobs.get(name)
        if not isinstance(job, BatchJob):
            return
        known = self._known.get(name, {})
        for slice_, before in known.items():
            now = job.results.get(slice_)
            if now is None:
                demand("results", set(before.nodes) <= gone, f"{name}: the result of slice {slice_} was given up")
                self._counters["slices reopened"] += 1
            else:
                is_same = (now.blob, now.failed) == (before.blob, before.failed)
                demand("results", is_same, f"{name}: slice {slice_} has two results")
        for slice_, result in job.results.items():
            is_its_own = 0 <= slice_ < job.spec.slices and result.blob == result_of(name, slice_)
            demand("results", is_its_own, f"{name}: {result.blob} is no result of slice {slice_}")
        if job.state == SUCCEEDED:
            lacking = set(range(job.spec.slices)) - job.results.keys()
            demand("results", not lacking, f"{name} has succeeded without slices {sorted(lacking)}")
        self._known[name] = dict(job.results)


class Promises:
    """No node promises more than it has."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters

    def after(self, state: ClusterState, command: Command) -> None:
        """Once processes were placed: what is promised is counted here by the commands alone, in its own way."""
        if not isinstance(command, Place | Recruit):
            return
        promised: Counter[tuple[NodeId, str]] = Counter()
        for job in state.jobs.values():
            computing = [p for p in job.placements if p.role.role != "gateway" and job.state not in ENDED]
            where = {p.node for p in computing} if isinstance(job, TrainingJob) else [p.node for p in computing]
            for node in where:
                promised[node, "cpus"] += job.spec.cpus or 0
                promised[node, "memory"] += job.spec.memory or 0
        for (node, what), amount in promised.items():
            has = getattr(state.members[node].capacity, what) if node in state.members else amount
            demand("promises", amount <= has, f"{node} has promised {amount} {what}, and has {has}")
        job_of = state.jobs.get(command.job)
        if job_of is not None and job_of.spec.share:
            self._counters["shares promised"] += 1


class Busy:
    """Of two that cannot talk neither is replaced while it is known that one is only busy."""

    def __init__(self, clock: Clock, counters: Counter[str]) -> None:
        self._clock = clock
        self._counters = counters
        self._since: dict[RoleKey, int] = {}
        """When it was agreed that a process is busy."""

    def before(self, state: ClusterState, command: Command) -> None:
        """``command`` is about to be applied."""
        job = state.jobs.get(command.role.job) if isinstance(command, LoseRole) else None
        if not isinstance(job, TrainingJob) or not isinstance(command, LoseRole):
            return
        reason = command.reason
        if not isinstance(reason, PairSilent) or command.role not in dict(job.roles()):
            return
        self._counters["pairs parted"] += 1
        for role in job.busy:
            is_new = self._clock.now - self._since[role] < _ON_ITS_WAY_MS
            is_either = role.name in {reason.role, reason.peer}
            demand("busy", is_new or not is_either, f"{role} is only busy, and {command} was agreed")

    def after(self, state: ClusterState, command: Command) -> None:
        """It was applied."""
        if isinstance(command, MarkBusy):
            busy = {role for job in state.jobs.values() if isinstance(job, TrainingJob) for role in job.busy}
            self._counters["processes busy"] += len(busy - self._since.keys())
            self._since = {role: self._since.get(role, self._clock.now) for role in busy}


class Fencing:
    """What is said of a placement that is not in force any more changes nothing; an invitation works once."""

    def __init__(self) -> None:
        self._before: tuple[object, ...] | None = None
        self._admitted: dict[PublicKey, NodeId] = {}

    def before(self, state: ClusterState, command: Command) -> None:
        """``command`` is about to be applied."""
        job = _stale(state, command)
        self._before = None if job is None else _shape(job)

    def after(self, state: ClusterState, command: Command) -> None:
        """It was applied."""
        if self._before is not None and isinstance(
            command, Finish | KeepPart | Place | SetCheckpointHolders | Reassign
        ):
            is_same = _shape(state.jobs[command.job]) == self._before
            demand("generations", is_same, f"{command} of a stale generation changed job {command.job}")
        elif self._before is not None and isinstance(command, BindRole | CompleteRole | LoseRole):
            is_same = _shape(state.jobs[command.role.job]) == self._before
            demand("generations", is_same, f"{command} of a stale generation changed job {command.role.job}")
        if isinstance(command, Admit) and state.requests[command.request].refusal is None:
            node = NodeId(state.requests[command.request].value)
            other = self._admitted.setdefault(command.invitation, node)
            demand("invitations", other == node, f"one invitation lets in {other} and {node}")


def _stale(state: ClusterState, command: Command) -> AnyJob | None:
    """The job, when ``command`` speaks of a generation of it that is not in force."""
    match command:
        case Finish(_, job, generation) | KeepPart(_, job, generation) | SetCheckpointHolders(_, job, generation):
            expected = generation
        case BindRole(_, role) | CompleteRole(_, role) | LoseRole(_, role):
            gone = state.jobs.get(role.job)
            return gone if gone is not None and role not in dict(gone.roles()) else None
        case Place(_, job, generation) | Reassign(_, job, generation):
            expected = generation - 1
        case _:
            return None
    found = state.jobs.get(job)
    if found is None:
        return None
    is_in_force = (
        isinstance(command, Finish | KeepPart | SetCheckpointHolders)
        and found.start_generation <= expected <= found.generation
    )
    return None if is_in_force or found.generation == expected else found


def _shape(job: AnyJob) -> tuple[object, ...]:
    if isinstance(job, BatchJob):
        results = {slice_: result.blob for slice_, result in job.results.items()}
        return (job.state, job.generation, job.placements, job.endpoints, dict(job.leases), results)
    if isinstance(job, DeploymentJob):
        return (job.state, job.generation, job.placements, job.endpoints, job.changes)
    return (
        job.state,
        job.generation,
        job.placements,
        job.assignment,
        job.endpoints,
        job.completed,
        job.checkpoint_holders,
        dict(job.parts),
        dict(job.final_parts),
        job.checkpoint,
    )


class Roles:
    """At most one holder of a role in a generation."""

    def __init__(self) -> None:
        self._holders: dict[RoleKey, NodeId] = {}

    def starts(self, node: NodeId, effect: StartRole, living: bool) -> None:
        """``living`` says that a process of this role lives already."""
        other = self._holders.setdefault(effect.role, node)
        demand("roles", other == node, f"{other} and {node} both hold {effect.role}")
        demand("roles", not living, f"{node} starts {effect.role} twice")


class Incarnations:
    """What a node knows of another never becomes older (SWIM, 4.2)."""

    def __init__(self) -> None:
        self._known: dict[tuple[NodeId, int], dict[NodeId, tuple[int, int]]] = {}

    def turned(self, node: Node, peer: Peer) -> None:
        """Look at all that a node knows. A member that was removed and comes again is known anew."""
        known = self._known.setdefault((node.me.node, node.boot_count), {})
        for other, member in peer.swim.members.items():
            before = known.get(other)
            identity = id(member)
            if before is not None and before[0] == identity and member.incarnation < before[1]:
                what = f"{node.name} knew {other} at incarnation {before[1]} and believes {member.incarnation}"
                raise Violation("incarnations", what)
            known[other] = (identity, member.incarnation)


class Answers:
    """Who asks is answered once, and what is answered with yes is committed."""

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self._open: dict[tuple[RequestId, str, int], tuple[Node, int]] = {}
        """By request, node and its boot count: who must answer, and until when."""
        self._said: dict[str, list[Answer]] = {}

    def asked(self, node: Node, request: RequestId, ends_at: int) -> None:
        """At this node, which has until ``ends_at``."""
        self._open[request, node.name, node.boot_count] = (node, ends_at)

    def answered(self, node: Node, answer: Answer) -> None:
        """By this node."""
        asked = self._open.pop((answer.request, node.name, node.boot_count), None)
        demand("answers", asked is not None, f"{node.name} answers {answer.request} twice")
        if answer.refusal is None:
            self._said.setdefault(node.name, []).append(answer)

    def turned(self, name: str) -> None:
        """A node's turn is over: what it said must be so. (While it writes, its commits are not looked at yet.)"""
        for answer in self._said.pop(name, ()):
            outcome = self._agreement.state.requests.get(answer.request)
            is_so = outcome is not None and (outcome.value, outcome.refusal) == (answer.value, None)
            demand("answers", is_so, f"{name} says yes to {answer.request}, which is not committed")

    def at_end(self, now: int) -> None:
        """Nobody waits beyond the patience; what was said before a crash was so."""
        for name in list(self._said):
            self.turned(name)
        for (request, _, boot_count), (node, ends_at) in self._open.items():
            waits = node.boot_count == boot_count and node.is_up and now > ends_at + 1_000
            demand("answers", not waits, f"{node.name} never answers {request}")
