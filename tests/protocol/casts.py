"""Placements as lists of nodes: the i-th holds the i-th role."""

from collections.abc import Iterable

from dmi_protocol.cluster.command import Place, Post
from dmi_protocol.cluster.state import Job, SeatRecord
from dmi_protocol.identity import JobId, NodeId, PublicKey, RequestId
from dmi_protocol.messages.roles import Cast, Replicas, RoleKey, Seat
from dmi_protocol.placement.casting import first_cast
from dmi_protocol.placement.roles import Chosen


def placing(
    job: JobId,
    generation: int,
    workers: tuple[NodeId, ...],
    servers: tuple[NodeId, ...],
    keepers: tuple[NodeId, ...] = (),
    restore: int | None = None,
    backups: int = 1,
    request: str = "",
) -> Place:
    """A life that begins."""
    posts = [Post(RoleKey(job, generation, "server", i), node) for i, node in enumerate(servers)]
    posts += [Post(RoleKey(job, generation, "worker", i), node) for i, node in enumerate(workers)]
    cast = first_cast(Chosen(workers, servers, len(servers), backups, keepers))
    name = RequestId(request or f"{job}/{generation}/place")
    return Place(name, job, generation, tuple(posts), cast, keepers, restore)


def put(job: Job, workers: tuple[NodeId, ...], servers: tuple[NodeId, ...], generation: int = 1) -> None:
    """Make this the placement of ``job``."""
    place = placing(job.id, generation, workers, servers)
    job.generation = job.life = generation
    job.posts, job.cast = place.posts, place.cast
    job.next_index = 1 + max(post.role.index for post in place.posts)


def seat_all(job: Job) -> None:
    """Every process that is wanted is bound."""
    job.seats = tuple(SeatRecord(Seat(key, node, node[0], "h:2", PublicKey("k" * 40)), 7) for key, node in job.roles())


def filled(cast: Cast) -> Cast:
    """The same, when everybody who was being filled is in sync."""
    shards = tuple(Replicas(r.primary, tuple(sorted((*r.backups, *r.filling)))) for r in cast.shards)
    return Cast(cast.workers, cast.speeds, cast.lead, shards)


def workers(posts: Iterable[Post]) -> tuple[NodeId, ...]:
    """The nodes of the workers, by their indices."""
    return tuple(post.node for post in sorted(posts, key=lambda post: post.role) if post.role.role == "worker")


def servers(posts: Iterable[Post]) -> tuple[NodeId, ...]:
    """The nodes of the servers, by their indices."""
    return tuple(post.node for post in sorted(posts, key=lambda post: post.role) if post.role.role == "server")
