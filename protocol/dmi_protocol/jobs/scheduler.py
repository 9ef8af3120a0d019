"""What the coordinator should propose next for the jobs: pure, from the state and who is alive.

Each proposal has a request id that is a function of what it decides, so proposing it twice does it once.
"""

import hashlib
from collections.abc import Set

from dmi_protocol import limits
from dmi_protocol.cluster.command import Command, Finish, LoseRole, Place, Post, Recruit, Rekeep, Shift
from dmi_protocol.cluster.state import ENDED, FAILED, RUNNING, SUCCEEDED, ClusterState, Job
from dmi_protocol.codec import pack
from dmi_protocol.identity import JobId, NodeId, RequestId
from dmi_protocol.instant import Instant, after, earliest
from dmi_protocol.jobs.hosting import role_name
from dmi_protocol.messages.roles import RoleKey
from dmi_protocol.placement.casting import dismissed, first_cast, is_full, recast, recruits
from dmi_protocol.placement.roles import choose, keepers_of
from dmi_protocol.reasons import NodeLost, PairSilent, Reason, RoleUnready, Succeeded


class Scheduler:
    """Remembers only since when the roles of a placement are awaited."""

    def __init__(self) -> None:
        self._since: dict[tuple[JobId, int], Instant] = {}

    def deadline(self, state: ClusterState) -> Instant | None:
        """When a role that has not got ready is given up."""
        waited = {(job.id, job.life) for job in state.jobs.values() if job.goes_on and not job.runs}
        self._since = {key: since for key, since in self._since.items() if key in waited}
        return earliest(*(after(since, limits.ROLE_START_MS) for since in self._since.values()))

    def propose(self, now: Instant, state: ClusterState, alive: Set[NodeId]) -> list[Command]:
        """All that is due now."""
        there = sorted(n for n, member in state.members.items() if n in alive and not member.witness)
        nodes = [node for node in there if not state.members[node].draining]
        load = _load(state)
        commands: list[Command] = []
        going_on = [job for job in state.jobs.values() if job.state not in ENDED]
        for job in sorted(going_on, key=lambda job: job.submitted_at):
            if not job.is_placed:
                commands += _place(job, nodes, load)
            elif _is_done(job):
                assert job.checkpoint is not None
                commands += [_finish(job, SUCCEEDED, Succeeded(job.checkpoint.step), job.checkpoint.step)]
            else:
                lost = _watch(job, there, state)
                commands += lost or _keep_up(job, nodes, there, load) or self._unready(now, job, state)
        return commands

    def _unready(self, now: Instant, job: Job, state: ClusterState) -> list[Command]:
        """A role that does not get ready is not waited for without end."""
        if job.runs:
            return []
        since = self._since.setdefault((job.id, job.life), now)
        if now < after(since, limits.ROLE_START_MS):
            return []
        seated = {record.seat.key for record in job.seats}
        role, node = next((role, node) for role, node in job.roles() if role not in seated)
        name = state.members[node].name
        return [_finish(job, FAILED, RoleUnready(role_name(role), name, limits.ROLE_START_MS))]


def _load(state: ClusterState) -> dict[NodeId, int]:
    load: dict[NodeId, int] = {}
    for job in state.jobs.values():
        if job.goes_on:
            for _, node in job.roles():
                load[node] = load.get(node, 0) + 1
    return load


def _place(job: Job, nodes: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
    """A job that has run makes do with fewer nodes; but somebody must have each part of its checkpoint."""
    fit = [node for node in nodes if job.misses.get(node, 0) < limits.MISSES]
    chosen = choose(job.spec, fit, load, fewer=job.has_run) or choose(job.spec, nodes, load, fewer=job.has_run)
    if chosen is None or job.parts_away(nodes):
        return []
    for node in chosen.workers:
        load[node] = load.get(node, 0) + 1
    generation, restore = job.generation + 1, None if job.checkpoint is None else job.checkpoint.step
    request = RequestId(f"{job.id}/{generation}/place-{restore}")
    servers = [Post(RoleKey(job.id, generation, "server", nth), node) for nth, node in enumerate(chosen.servers)]
    workers = [Post(RoleKey(job.id, generation, "worker", nth), node) for nth, node in enumerate(chosen.workers)]
    posts, cast = (*servers, *workers), first_cast(chosen)
    return [Place(request, job.id, generation, posts, cast, chosen.keepers, restore)]


def _is_done(job: Job) -> bool:
    return job.runs and job.all_completed and job.final


def _watch(job: Job, nodes: list[NodeId], state: ClusterState) -> list[Command]:
    """A role is lost with its node, unless its work is done and safe."""
    lost: list[Command] = _part_pairs(job, state)
    for role, node in job.roles():
        is_safe = job.final and job.is_done(role)
        if node not in nodes and not is_safe:
            seated = next((r.seat.node_name for r in job.seats if r.seat.key == role), node)
            name = state.members[node].name if node in state.members else seated
            request = RequestId(f"{job.id}/{role.generation}/lost-{role_name(role)}")
            lost.append(LoseRole(request, role, NodeLost(role_name(role), name)))
    return lost


def _part_pairs(job: Job, state: ClusterState) -> list[Command]:
    """Of two that cannot talk one is replaced: whoever has not been of use yet, or else the one on the later node, so that
    all pairs between two nodes end alike."""
    nodes = dict(job.roles())
    lost: dict[RoleKey, Command] = {}
    for pair in job.pairs:
        two = (pair.role, pair.peer)
        victim = max(two, key=lambda role: (_is_new(role, job), nodes[role], role))
        other = next(role for role in two if role != victim)
        names = [state.members[nodes[r]].name if nodes[r] in state.members else nodes[r] for r in (victim, other)]
        reason = PairSilent(role_name(victim), names[0], role_name(other), names[1], pair.silent_ms)
        request = RequestId(f"{job.id}/{victim.generation}/lost-{role_name(victim)}")
        lost.setdefault(victim, LoseRole(request, victim, reason))
    return list(lost.values())


def _is_new(role: RoleKey, job: Job) -> bool:
    return role.role == "worker" and role.generation != job.life and role not in job.ready


def _keep_up(job: Job, nodes: list[NodeId], there: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
    """Survivors go on in a new generation; then whoever is missing is called. Nodes that are ``there`` and not among
    ``nodes`` are leaving."""
    leaving = set(there) - set(nodes)
    return _recast(job, nodes, leaving) or _recruit(job, nodes, load) or _rekeep(job, nodes or there)


def _recast(job: Job, nodes: list[NodeId], leaving: Set[NodeId]) -> list[Command]:
    if not job.runs or job.all_completed or (job.completed and job.state == RUNNING):
        return []
    cast = recast(job, leaving)
    gone = dismissed(job, cast, leaving)
    full = is_full(job, cast, nodes)
    if cast == job.cast and not gone and job.state == RUNNING and (job.reason is None or not full):
        return []
    generation = job.generation + 1
    digest = hashlib.sha256(pack((cast, gone))).hexdigest()[:16]
    return [Shift(RequestId(f"{job.id}/{generation}/shift-{digest}-{full}"), job.id, generation, cast, full, gone)]


def _recruit(job: Job, nodes: list[NodeId], load: dict[NodeId, int]) -> list[Command]:
    """While nobody is done yet: whoever comes at the end has nothing to do."""
    if not job.runs or job.completed or job.state != RUNNING:
        return []
    posts = recruits(job, nodes, load)
    if not posts:
        return []
    who = "-".join(post.node for post in posts)
    return [
        Recruit(RequestId(f"{job.id}/{job.generation}/recruit-{job.next_index}-{who}"), job.id, job.generation, posts)
    ]


def _rekeep(job: Job, nodes: list[NodeId]) -> list[Command]:
    """A keeper that is away is replaced, so that checkpoints go on being whole."""
    primaries = job.primaries()
    keepers = keepers_of(primaries, nodes)
    are_apart = all(keeper != primary for keeper, primary in zip(job.keepers, primaries, strict=False))
    if keepers and job.keepers and set(job.keepers) <= set(nodes) and are_apart:
        return []
    if keepers == job.keepers:
        return []
    request = RequestId(f"{job.id}/{job.generation}/keep-{job.rekept}-{'-'.join(keepers)}")
    return [Rekeep(request, job.id, job.generation, keepers)]


def _finish(job: Job, state: str, reason: Reason, step: int | None = None) -> Finish:
    return Finish(RequestId(f"{job.id}/{job.generation}/finish-{state}"), job.id, job.generation, state, reason, step)
