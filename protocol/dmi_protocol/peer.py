"""One node's whole mind: composes the machines. News flows down, membership to consensus to the state to jobs; wishes go
back up as proposals only."""

from collections.abc import Sequence
from functools import partial
from random import Random

from msgspec import Struct

from dmi_protocol import gossip_facts, reasons
from dmi_protocol.blame import APPLYING, HOSTING, SetAside, at
from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.apply import apply, leave_out
from dmi_protocol.cluster.command import Admit, Command, LoseRole, Readdress, Remove, Resize
from dmi_protocol.cluster.directory import MemberDirectory
from dmi_protocol.cluster.expulsion import Expulsion
from dmi_protocol.cluster.proposals import Proposals
from dmi_protocol.cluster.removals import Removals
from dmi_protocol.cluster.search import Search, answer
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.consensus.output import ApplyEntries, Restore
from dmi_protocol.consensus.output import Output as ConsensusOutput
from dmi_protocol.consensus.raft import Raft
from dmi_protocol.consensus.settings import RaftSettings, Restored
from dmi_protocol.effects import Changed, Effect, Explain, ForgetJob, Send
from dmi_protocol.events import (
    Asked,
    BlobArrived,
    BlobFailed,
    BlobPinned,
    Disconnected,
    DiskFailed,
    DiskReturned,
    Event,
    JoinAsked,
    Received,
    RoleHappened,
    Stopping,
)
from dmi_protocol.identity import JobId, NodeId, PublicKey, RequestId
from dmi_protocol.instant import Instant, earliest
from dmi_protocol.jobs.hosting import Hosting
from dmi_protocol.jobs.scheduler import Scheduler
from dmi_protocol.kinds.deployment.scaling import Scaler
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import ENDED
from dmi_protocol.kinds.kind import Host
from dmi_protocol.membership.settings import SwimSettings
from dmi_protocol.membership.swim import MemberChanged, Swim
from dmi_protocol.messages.consensus import Entry, Noop, Snapshot, Voters
from dmi_protocol.messages.control import ControlMessage, Coordinated, Introduced, Leaving, Propose, Seeking
from dmi_protocol.messages.membership import FACTS
from dmi_protocol.messages.roles import Progressed, Served
from dmi_protocol.placement.voters import next_voters
from dmi_protocol.sentences import sentence
from dmi_protocol.view import View, deployment_view, job_view, member_views, no_quorum

_ROUNDS = 8
"""So often what follows from what follows is looked at in one step."""


class Me(Struct, frozen=True):
    """This node. ``pid`` and ``version`` are gossiped; ``ports`` is the range for the data sockets of its roles."""

    node: NodeId
    name: str
    address: str
    public_key: PublicKey
    pid: int = 0
    version: str = ""
    witness: bool = False
    ports: tuple[int, int] = (0, 0)
    capacity: Capacity = Capacity()
    """What it has for jobs."""
    boot_count: int = 0
    """How often this node was started before: larger after each restart."""


class PeerSettings(Struct, frozen=True):
    """All clocks of a peer, in milliseconds."""

    raft: RaftSettings = RaftSettings()
    swim: SwimSettings = SwimSettings()
    compact_entries: int = 1_000
    """The log is compacted when it is this long."""


def found(me: Me, mesh: str) -> Restored:
    """What the disk of the first node of a new mesh holds: itself as the only member and voter."""
    state = ClusterState(mesh)
    state.members[me.node] = MemberRecord(me.node, me.name, me.address, me.public_key, me.witness, capacity=me.capacity)
    state.applied = 1
    return Restored(1, None, Snapshot(1, 1, (me.node,), state.encode()))


class Peer:
    """See ``machine.py`` for what the shell must do. ``introduced`` are the members that a newcomer was told of,
    or that a node knew before it was started again. What is ``set_aside`` has ended its daemon before, and is left alone."""

    def __init__(
        self,
        me: Me,
        settings: PeerSettings,
        random: Random,
        restored: Restored,
        introduced: Sequence[Introduced] = (),
        set_aside: SetAside | None = None,
    ) -> None:
        self.me = me
        self._set_aside = set_aside or SetAside()
        self._settings = settings
        self.raft = Raft(me.node, settings.raft, Random(random.random()), restored)
        self.swim = Swim(me.node, settings.swim, Random(random.random()), me.boot_count)
        self.state: ClusterState | None = None
        if restored.snapshot is not None:
            self._restore(restored.snapshot)
        self._directory = MemberDirectory(me.node, introduced, self.raft.log.last)
        self._proposals = Proposals()
        self._removals = Removals()
        self._search = Search()
        self._expulsion = Expulsion(me.node)
        self._hosting = Hosting(
            Host(me.node, me.name, me.address.rpartition(":")[0], me.ports), self._reached, set_aside
        )
        self._scheduler = Scheduler(me.name, set_aside)
        self._scaler = Scaler()
        self._is_new = True
        self._is_dirty = True
        """The state or the membership has changed, so what follows from them is looked at again."""
        self._unfinished_at: Instant | None = None
        """When more followed from what is known than one step does: the rest is the next one's."""
        self._is_shown = False
        """Something else is new that ``status`` shows."""
        self._trouble = ""
        """Why our disk takes nothing. Consensus stands still meanwhile: it would promise what is not durable."""
        self._was_ready = False
        self._abreast = 0
        self._in_log: tuple[int, set[RequestId]] = (0, set())
        """The requests that we put into the log as leader of a term, and that are not applied yet."""

    # The one door

    def step(self, now: Instant, event: Event) -> list[Effect]:
        """Take one event in and give the work that follows from it."""
        effects: list[Effect] = []
        before = self.raft.leader
        if self._is_new:
            self._begin(now, effects)
        if self._directory.is_due(now):
            self._meet(now, effects)
        self._expulsion.happened(now, event, self.state)
        self._take(now, event, effects)
        self._follow_up(now, effects)
        if self._hosting and not self._trouble:
            effects += self._hosting.leases(self.raft.contact(now))
        known, voters = self._directory.others, self.raft.voters
        is_led = self._expulsion.is_refused and self.raft.has_quorum(now)
        effects += self._expulsion.look(now, self.state, known, voters, is_led=is_led)
        effects += self._search.look(now, is_lost=self._is_lost(), members=self._directory.members)
        if before != self.raft.leader or self._is_dirty or self._is_shown:
            effects.append(Changed())
        self._is_shown = False
        self._is_dirty = self._unfinished_at is not None
        return effects

    def deadline(self) -> Instant | None:
        """When a ``Ticked`` is wanted."""
        return earliest(
            self._unfinished_at,
            None if self._trouble else self.raft.deadline(),
            self.swim.deadline(),
            self._hosting.deadline(),
            self._proposals.deadline() if self._proposals.pending else None,
            self._directory.deadline(),
            self._search.deadline(),
            self._expulsion.deadline(),
            earliest(self._scheduler.deadline(), self._scaler.deadline()) if self._coordinates() else None,
            self._hosting.renewal() if self.raft.leads_alone else None,
        )

    def check(self) -> None:
        """Assert the invariants of every machine."""
        self.raft.check()
        self.swim.check()
        assert self.state is None or self.state.applied <= self.raft.commit

    def _begin(self, now: Instant, effects: list[Effect]) -> None:
        self._is_new = False
        self._meet(now, effects)
        self._tidy(effects)
        self._publish(now)

    def _publish(self, now: Instant) -> None:
        self.swim.publish(now, FACTS, gossip_facts.pack_facts((self.me.pid, self.me.version, self._trouble)))

    def _take(self, now: Instant, event: Event, effects: list[Effect]) -> None:
        match event:
            case Received(sender, message):
                if isinstance(message, ControlMessage):
                    self._hear(now, sender, message, effects)
                else:
                    self._pass(now, event, effects)
            case Asked(_, command, within_ms):
                self._proposals.ask(now, command, within_ms)
            case JoinAsked():
                self._join(now, event)
            case RoleHappened(role, happened):
                with at(HOSTING, role.job):
                    self._tell(now, self._hosting.happened(role, happened))
                if isinstance(happened, Progressed | Served):
                    self.swim.publish(now, gossip_facts.about(role.job), gossip_facts.pack_told(happened))
                self._is_dirty = True
            case BlobArrived() | BlobFailed() | BlobPinned():
                self._mind_blob(now, event, effects)
            case DiskFailed(cause) if not self._trouble:
                cause = cause[: gossip_facts.CAUSE_CHARACTERS]
                self._disk_is(now, cause, reasons.DiskFull(self.me.name, cause), effects)
            case DiskReturned() if self._trouble:
                self._disk_is(now, "", reasons.DiskFree(self.me.name), effects)
            case Stopping():
                effects += self._hosting.stop()
                self._pass(now, event, effects)
                effects += [Send(node, Leaving()) for node in sorted(self._directory.members)]
            case _:
                self._pass(now, event, effects)

    def _mind_blob(self, now: Instant, event: BlobArrived | BlobFailed | BlobPinned, effects: list[Effect]) -> None:
        match event:
            case BlobArrived(blob) if self.state is not None:
                work, facts = self._hosting.arrived(now, self.state, blob)
                effects += work
                self._tell(now, facts)
            case BlobFailed(blob):
                self._hosting.missing(now, blob)
            case BlobPinned(blob):
                self._hosting.pin(now, blob)

    def _disk_is(self, now: Instant, trouble: str, reason: reasons.Reason, effects: list[Effect]) -> None:
        """Consensus ends what it was about when the disk failed, and is a follower without a leader once it is back."""
        self._trouble, self._is_dirty = trouble, True
        self._agree(now, self.raft.step_aside(now), effects)
        self._publish(now)
        effects.append(Explain("mesh", reason))

    def _hear(self, now: Instant, sender: NodeId, message: ControlMessage, effects: list[Effect]) -> None:
        match message:
            case Propose(command):
                if isinstance(command, Remove) and command.node == sender:
                    self._directory.wishes_to_leave(now, sender)
                self._propose_here(now, command, effects)
            case Leaving():
                self._pass(now, Disconnected(sender), effects)
            case Seeking():
                effects += answer(sender, self.state, self.raft.leader)
            case Coordinated(by, applied):
                self._directory.vouch(by, applied)
                self._meet(now, effects)

    def _pass(self, now: Instant, event: Event, effects: list[Effect]) -> None:
        """To the machines that speak with other nodes."""
        rumors_before, facts_before = self.swim.heard_rumors, self.swim.heard_facts
        for output in self.swim.step(now, event):
            if isinstance(output, MemberChanged):
                self._is_dirty = True
            else:
                effects.append(output)
        self._is_dirty = self._is_dirty or self.swim.heard_facts != facts_before
        self._is_shown = self._is_shown or self.swim.heard_rumors != rumors_before
        if not self._trouble:
            self._agree(now, self.raft.step(now, event), effects)

    # What was agreed

    def _agree(self, now: Instant, outputs: Sequence[ConsensusOutput], effects: list[Effect]) -> None:
        is_news = False
        for output in outputs:
            match output:
                case ApplyEntries(entries):
                    for entry in entries:
                        with at(APPLYING, _place_of(entry)):
                            self._apply(entry, effects)
                    is_news = True
                case Restore(snapshot):
                    self._is_dirty = True
                    self._restore(snapshot)
                    is_news = True
                case _:
                    effects.append(output)
        if is_news:  # after the sends: whoever is removed is told so before it is unlinked
            if not self._directory.knows(self.state):
                self._meet(now, effects)
            self._tidy(effects)

    def _restore(self, snapshot: Snapshot) -> None:
        self.state = ClusterState.decode(snapshot.state)
        for job in self.state.jobs.values():
            if job.state in ENDED:
                self.swim.retract(gossip_facts.about(job.id))

    def _apply(self, entry: Entry, effects: list[Effect]) -> None:
        self._is_dirty = True
        assert self.state is not None
        if isinstance(entry.command, Noop | Voters):
            self.state.applied = entry.index
            return
        goes_on = {job.id for job in self.state.jobs.values() if job.state not in ENDED}
        is_set_aside = self._set_aside.of(APPLYING, _place_of(entry)) is not None
        (leave_out if is_set_aside else apply)(self.state, entry.index, entry.command)
        self._in_log[1].discard(entry.command.request)
        if isinstance(entry.command, LoseRole):
            effects.append(Explain(entry.command.role.job, entry.command.reason))
        for ended in goes_on:
            job = self.state.jobs.get(ended)
            if job is None or job.state in ENDED:
                self.swim.retract(gossip_facts.about(ended))
            if job is not None and job.state in ENDED and job.reason is not None:
                effects.append(Explain(job.id, job.reason))
                effects.append(ForgetJob(job.id))

    def _meet(self, now: Instant, effects: list[Effect]) -> None:
        """Watch, replicate to and hear the members, and nobody else."""
        effects += self._directory.meet(now, self.state)
        self.swim.set_members(now, self._directory.members)
        self.raft.follow(now, self._directory.linked)

    def _tidy(self, effects: list[Effect]) -> None:
        if self.state is not None:
            effects += self._hosting.drop_kept(self.state)

    # Proposals

    def _join(self, now: Instant, event: JoinAsked) -> None:
        join = event.join
        command = Admit(
            event.request, event.invitation, event.at_unix, join.name, join.address, join.public_key, join.witness
        )
        self._proposals.ask(now, command, 10_000)

    def _tell(self, now: Instant, facts: Sequence[Command]) -> None:
        """What is known already need not be told: that would be proposed again with whatever follows from it."""
        for fact in facts:
            if self.state is None or fact.request not in self.state.requests:
                self._proposals.tell(now, fact)

    def _propose_here(self, now: Instant, command: Command, effects: list[Effect]) -> None:
        """Into the log, when we lead and it is not done already."""
        if not self.raft.is_leader or self.state is None or command.request in self.state.requests:
            return
        if isinstance(command, Remove) and command.node in self._needed() and len(self.state.members) > 1:
            self._removals.hold(now, command)
            self._is_dirty = True
            return
        if self._in_log[0] != self.raft.term:
            self._in_log = (self.raft.term, set())
        if command.request not in self._in_log[1]:
            self._in_log[1].add(command.request)
            self._agree(now, self.raft.propose(now, command), effects)

    def _needed(self) -> frozenset[NodeId]:
        """Who cannot be removed yet: the voters; and a coordinator is removed by its successor."""
        return frozenset(self.raft.voters) | {self.me.node}

    def _follow_up(self, now: Instant, effects: list[Effect]) -> None:
        """Everything that follows from what is known now; until nothing new follows, or the others would wait for too long."""
        self._unfinished_at = None
        for _ in range(_ROUNDS):
            self._mind_jobs(now, effects)
            if not self._proposals.pending:
                break
            due = self._proposals.due(now, self.raft.leader, self.raft.term)
            for command in due:
                if self.raft.is_leader:
                    self._propose_here(now, command, effects)
                elif self.raft.leader is not None:
                    effects.append(Send(self.raft.leader, Propose(command)))
            effects += self._proposals.settle(now, self.state, self._why_nothing(now))
            if not due:
                break
        else:
            self._unfinished_at = now

    def _mind_jobs(self, now: Instant, effects: list[Effect]) -> None:
        if self.state is None:
            return
        if self._is_dirty:
            work, facts = self._hosting.reconcile(now, self.state)
            effects += work
            self._tell(now, facts)
            mine = self.state.members.get(self.me.node)
            if mine is not None and mine.address != self.me.address:
                request = RequestId(f"{self.me.node}/{self.me.address}/{self.state.applied}")
                self._tell(now, [Readdress(request, self.me.node, self.me.address)])
            if mine is not None and mine.capacity != self.me.capacity:
                request = RequestId(f"{self.me.node}/{self.me.boot_count}/capacity")
                self._tell(now, [Resize(request, self.me.node, self.me.capacity)])
        due = self._hosting.deadline()
        if due is not None and now >= due:
            work, facts = self._hosting.tick(now, self.state)
            effects += work
            self._tell(now, facts)
        if self.raft.is_leader:
            self._lead_jobs(now, effects)
        else:
            self._removals.forget()
            self._was_ready = False
        if self.raft.commit - self.raft.log.start >= self._settings.compact_entries and not self._trouble:
            self._agree(now, self.raft.compact(now, self.state.encode()), effects)

    def _lead_jobs(self, now: Instant, effects: list[Effect]) -> None:
        schedule = earliest(self._scheduler.deadline(), self._scaler.deadline()) if self._coordinates() else None
        is_news = self._is_dirty or not self._was_ready or len(self.raft.abreast) != self._abreast
        if (is_news or (schedule is not None and now >= schedule)) and self.raft.is_ready:
            self._coordinate(now, effects)
        self._was_ready, self._abreast = self.raft.is_ready, len(self.raft.abreast)

    def _coordinates(self) -> bool:
        return self.raft.is_ready and self.me.node in self.raft.voters

    def _coordinate(self, now: Instant, effects: list[Effect]) -> None:
        assert self.state is not None
        alive = self.alive() - gossip_facts.in_trouble(self.swim.rumors, self.state.members)
        if self.raft.may_change_voters():
            members = frozenset(self.state.members) - self._removals.going(now)
            fit = alive & (self.raft.voters | self.raft.abreast)
            witnesses = frozenset(node for node, member in self.state.members.items() if member.witness)
            voters = next_voters(self.raft.voters, members, fit, self.me.node, witnesses)
            if voters is not None:
                self._agree(now, self.raft.change_voters(now, voters), effects)
            for removal in self._removals.ready(self._needed()):
                self._propose_here(now, removal, effects)
        if not self._coordinates():
            return
        for command in (*self._scheduler.propose(now, self.state, alive), *self._scale(now)):
            self._proposals.tell(now, command)

    def _scale(self, now: Instant) -> list[Command]:
        """Deployments follow the load, as gateways gossip it."""
        assert self.state is not None
        deployments = [job for job in self.state.jobs.values() if isinstance(job, DeploymentJob) and job.goes_on]
        return self._scaler.propose(now, deployments, self._served)

    def _served(self, job: DeploymentJob) -> list[Served]:
        told = [gossip_facts.served_of(self.swim.rumors, job.id, each.node) for each in job.bound("gateway")]
        return [each for each in told if each is not None]

    # What can be asked

    def alive(self) -> frozenset[NodeId]:
        """The members that are not known to be dead; we are among them."""
        nodes = self.state.members if self.state is not None else {self.me.node}
        return frozenset(node for node in nodes if self.swim.is_alive(node))

    def _reached(self, job: JobId) -> int | None:
        """The last step of a job that was heard of."""
        told = gossip_facts.progress_of(self.swim.rumors, job)
        return None if told is None else told.step

    def _is_lost(self) -> bool:
        """No coordinator is heard, or it does not hear us."""
        return not self._trouble and (self.raft.leader is None or not self.swim.is_alive(self.raft.leader))

    def _why_nothing(self, now: Instant) -> reasons.Reason | None:
        """Why nothing can be agreed on now."""
        if self._trouble:
            return reasons.DiskFull(self.me.name, self._trouble)
        return None if self.raft.has_quorum(now) else no_quorum(self.state, self.raft.voters, self.swim.is_alive)

    def standing(self, node: NodeId) -> str:
        """``alive``, ``suspect``, ``dead`` or ``left``."""
        return self.swim.standing(node)

    def view(self, now: Instant) -> View:
        """All that ``status`` shows."""
        state = self.state if self.state is not None else ClusterState("")
        leader = state.members.get(self.raft.leader) if self.raft.leader is not None else None
        why, alive = self._why_nothing(now), self.alive()
        return View(
            mesh=state.mesh,
            node=self.me.name,
            coordinator=leader.name if leader is not None and why is None else None,
            term=self.raft.term,
            quorum=why is None,
            quorum_reason=None if why is None else sentence(why),
            members=member_views(
                state, self.raft.voters, self.standing, partial(gossip_facts.facts_of, self.swim.rumors)
            ),
            jobs=tuple(
                job_view(job, state, alive, gossip_facts.progress_of(self.swim.rumors, job.id))
                for job in state.jobs.values()
            ),
            deployments=tuple(
                deployment_view(job, partial(gossip_facts.served_of, self.swim.rumors, job.id))
                for job in state.jobs.values()
                if isinstance(job, DeploymentJob) and job.state not in ENDED
            ),
        )


def _place_of(entry: Entry) -> str:
    return f"{entry.term}/{entry.index}"
