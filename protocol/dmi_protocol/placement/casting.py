"""Who does what in the next generation of a job whose processes go on, and whom it still lacks: pure, from the state."""

from collections.abc import Collection, Mapping, Sequence

from dmi_protocol import limits
from dmi_protocol.cluster.command import Post
from dmi_protocol.cluster.state import Job
from dmi_protocol.identity import NodeId
from dmi_protocol.messages.roles import Cast, Replicas, RoleKey
from dmi_protocol.placement.roles import Chosen, wanted_backups


def first_cast(chosen: Chosen) -> Cast:
    """Of processes that are started together: the backups are filled once there is something to fill them with."""
    servers, backups = len(chosen.servers), chosen.backups
    shards = tuple(
        Replicas(shard, (), tuple(sorted((shard + 1 + nth) % servers for nth in range(min(backups, servers - 1)))))
        for shard in range(chosen.shards)
    )
    workers = tuple(range(len(chosen.workers)))
    return Cast(workers, (1.0,) * len(workers), 0, shards)


def recast(job: Job) -> Cast:
    """What the processes of ``job`` that are there should do. Every shard has a copy in sync among them.

    A lost primary's first backup takes its place; all other copies are then filled anew. Shards that lack backups get
    them on the servers that have the fewest copies, each on another node than the other copies.
    """
    assert job.cast is not None
    seated = {record.seat.key for record in job.seats}
    node_of = {p.role.index: p.node for p in job.posts if p.role.role == "server" and p.role in seated}
    shards = [_survive(job, shard, replicas, node_of) for shard, replicas in enumerate(job.cast.shards)]
    copies = dict.fromkeys(sorted(node_of), 0)
    for replicas in shards:
        for server in (*replicas.in_sync, *replicas.filling):
            copies[server] += 1
    full = tuple(_fill(replicas, wanted_backups(job.spec), node_of, copies) for replicas in shards)
    workers = sorted((p.role for p in job.posts if p.role.role == "worker" and p.role in seated), key=_index)
    speeds = tuple(1.0 if role.generation == job.life or role in job.ready else 0.0 for role in workers)
    able = [role.index for role, speed in zip(workers, speeds, strict=True) if speed and role not in job.completed]
    lead = job.cast.lead if job.cast.lead in able else min(able)
    return Cast(tuple(role.index for role in workers), speeds, lead, full)


def _index(role: RoleKey) -> int:
    return role.index


def _survive(job: Job, shard: int, replicas: Replicas, node_of: Mapping[int, NodeId]) -> Replicas:
    """The copies of one shard that are still there."""
    backups = [server for server in replicas.backups if server in node_of]
    filling = [server for server in replicas.filling if server in node_of]
    if replicas.primary not in node_of:
        return Replicas(backups[0], (), tuple(sorted({*backups[1:], *filling})))
    caught_up = [server for server in filling if (shard, server) in job.synced]
    still = tuple(server for server in filling if server not in caught_up)
    return Replicas(replicas.primary, tuple(sorted({*backups, *caught_up})), still)


def _fill(replicas: Replicas, wanted: int, node_of: Mapping[int, NodeId], copies: dict[int, int]) -> Replicas:
    filling = list(replicas.filling)
    while len(replicas.backups) + len(filling) < wanted:
        used = {node_of[server] for server in (*replicas.in_sync, *filling)}
        able = [server for server in copies if node_of[server] not in used]
        if not able:
            break
        chosen = min(able, key=lambda server: (copies[server], server))
        copies[chosen] += 1
        filling.append(chosen)
    return Replicas(replicas.primary, replicas.backups, tuple(sorted(filling)))


def is_full(job: Job, cast: Cast, nodes: Sequence[NodeId]) -> bool:
    """Is nothing amiss with ``cast``: every process that there could be is there, and does its part?"""
    backups = min(wanted_backups(job.spec), len(nodes) - 1)
    copied = all(len(replicas.backups) >= backups for replicas in cast.shards)
    return copied and all(cast.speeds) and not recruits(job, nodes, {})


def recruits(job: Job, nodes: Sequence[NodeId], load: Mapping[NodeId, int]) -> tuple[Post, ...]:
    """The processes that a job lacks and that ``nodes`` could run: workers up to what was asked for, servers while a shard
    has fewer copies than it should."""
    nodes = [node for node in nodes if job.misses.get(node, 0) < limits.MISSES]
    posts = [post for post in job.posts if post.node in nodes]
    ordered = sorted(nodes, key=lambda node: (load.get(node, 0), node))
    workers = _free("worker", posts, ordered)[: max(0, (job.spec.workers or len(nodes)) - _count("worker", posts))]
    copies = 1 + wanted_backups(job.spec)
    servers = _free("server", posts, ordered)[: max(0, copies - _count("server", posts))]
    wanted = [("server", node) for node in servers] + [("worker", node) for node in workers]
    return tuple(
        Post(RoleKey(job.id, job.generation, "server" if role == "server" else "worker", job.next_index + nth), node)
        for nth, (role, node) in enumerate(wanted)
    )


def _count(role: str, posts: Collection[Post]) -> int:
    return len({post.node for post in posts if post.role.role == role})


def _free(role: str, posts: Collection[Post], nodes: Sequence[NodeId]) -> list[NodeId]:
    """The nodes that have no such process."""
    taken = {post.node for post in posts if post.role.role == role}
    return [node for node in nodes if node not in taken]
