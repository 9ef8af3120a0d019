"""Daemon and role process talk over a socket pair that the child inherits: one daemon, its own children, one host.

The channel carries length-prefixed msgpack; these are its messages. A role process never sees the node's keys.
"""

from typing import Literal

from msgspec import Struct

from dmi_protocol.capacity import Capacity
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey
from dmi_protocol.instant import Instant
from dmi_protocol.model import ModelContent, ModelRef

Role = Literal["server", "worker", "replica", "gateway"]


class RoleKey(Struct, frozen=True, order=True):
    """Which process this is. ``generation`` is the one that it was made for; it may live on in later ones.

    No two processes that meet have one ``index`` of a role: who comes after a lost one has another.
    """

    job: JobId
    generation: int
    role: Role
    index: int

    @property
    def name(self) -> str:
        """What people call it: ``worker-0``."""
        return f"{self.role}-{self.index}"


class Launch(Struct, frozen=True, kw_only=True):
    """The first message to a child: all it needs to begin, whatever it is. Paths are absolute and on this host.

    ``needs`` are the blobs that it begins from beside the job's files, ``files`` where they lie, in the same order.
    ``ports`` is the range (first, last) in which the data socket may be bound, ``host`` the address to bind.
    """

    key: RoleKey
    node: NodeId
    node_name: str
    bundle: str
    directory: str
    threads: int
    host: str
    ports: tuple[int, int]
    bundle_hash: BlobHash = BlobHash("")
    files: tuple[str, ...] = ()
    needs: tuple[BlobHash, ...] = ()
    share: Capacity = Capacity()
    """What it is promised of this host: alone, or with the other processes of its training here."""


class TrainingLaunch(Launch, frozen=True, kw_only=True, tag="launch-training"):
    """Of a worker or a server.

    ``leaves`` is None when the command line did not say; the script's ``dmi.init`` decides then.
    A server that goes on from a checkpoint needs the parts that hold its buckets.
    """

    script: str
    args: tuple[str, ...]
    leaves: int | None
    workers: int
    shards: int
    env: tuple[tuple[str, str], ...] = ()
    python: str | None = None


class BatchLaunch(Launch, frozen=True, kw_only=True, tag="launch-batch"):
    """Of a replica; ``needs`` are the files of the model, in their order. The i-th slice begins with input
    ``i * slice_inputs``."""

    model: ModelRef
    inputs: int
    slice_inputs: int


class ReplicaLaunch(Launch, frozen=True, kw_only=True, tag="launch-replica"):
    """Of a deployment's replica; ``needs`` are the files of the model, or of its stage of it, in their order."""

    model: ModelRef
    max_batch: int
    stage: int = 0


class GatewayLaunch(Launch, frozen=True, kw_only=True, tag="launch-gateway"):
    """Of a deployment's gateway: see ``DeploymentSpec``."""

    model: ModelRef
    max_batch: int
    max_wait_ms: int
    exact: bool
    port: int
    may_move: bool
    certificate: str = ""
    certificate_key: str = ""


class Endpoint(Struct, frozen=True):
    """One role process as its peers see it. ``address`` is ``host:port`` of its data socket; of a gateway, where it takes
    requests in."""

    key: RoleKey
    node: NodeId
    node_name: str
    address: str
    public_key: PublicKey


class Replicas(Struct, frozen=True):
    """The copies of one shard, by the indices of their servers.

    ``backups`` are in sync: they have every version that a worker has seen, and only they may be promoted. Who is
    ``filling`` is given the shard while the training goes on.
    """

    primary: int
    backups: tuple[int, ...] = ()
    filling: tuple[int, ...] = ()

    @property
    def in_sync(self) -> tuple[int, ...]:
        """Who has all that was ever shown."""
        return (self.primary, *self.backups)


class Assignment(Struct, frozen=True):
    """Who does what in one generation, by indices.

    ``speeds`` weigh the shares of leaves of ``workers``, in the same order; one with speed 0.0 only follows.
    ``lead`` is the worker that prints and evaluates. ``shards[s]`` are the copies of shard ``s``.
    """

    workers: tuple[int, ...]
    speeds: tuple[float, ...]
    lead: int
    shards: tuple[Replicas, ...]


class Roster(Struct, frozen=True, tag="roster"):
    """Who takes part: committed, and the same everywhere. ``servers`` and ``workers`` are all of ``assignment``'s.

    ``restore`` is the step of the checkpoint that the first servers have begun from, None when they were given the
    initial weights. ``start_generation`` is the generation in which they were started.
    """

    generation: int
    start_generation: int
    servers: tuple[Endpoint, ...]
    workers: tuple[Endpoint, ...]
    assignment: Assignment
    restore: int | None = None

    @property
    def joiners(self) -> tuple[int, ...]:
        """The workers that come in, or have no leaves yet."""
        return tuple(w for w, speed in zip(self.assignment.workers, self.assignment.speeds, strict=True) if not speed)

    def primary(self, shard: int) -> Endpoint:
        """The endpoint of a shard's primary."""
        return next(
            endpoint for endpoint in self.servers if endpoint.key.index == self.assignment.shards[shard].primary
        )


class Slices(Struct, frozen=True, tag="slices"):
    """To a replica: compute these, in this order; what it has begun and is not among them is given up. ``decided`` grows with
    each such message, ``reopened`` when results were lost: only then a slice is computed again that was computed here. Where the
    inputs travel ``packs`` has those of each slice, and the shell says where they lie: ``files``."""

    decided: int
    slices: tuple[int, ...]
    reopened: int = 0
    packs: tuple[BlobHash, ...] = ()
    files: tuple[str, ...] = ()


class Versions(Struct, frozen=True):
    """What a deployment computes with. Of a hundred requests that name no version ``share`` go to the ``canary``, if there is
    one."""

    current: ModelRef
    canary: ModelRef | None = None
    share: int = 0

    @property
    def all(self) -> tuple[ModelRef, ...]:
        """Both, or the one that there is."""
        return (self.current,) if self.canary is None else (self.current, self.canary)


class Fleet(Struct, frozen=True, tag="fleet"):
    """To the replicas and gateways of a deployment: whom they speak with now, all of them bound. ``replicas`` are those that it
    may ask: a gateway asks those of the first stage, and a replica those of the stage after its own. ``gateways`` are those that
    may ask it: gateways, or the replicas of the stage before. ``number`` grows with each such message. ``versions`` is None for a
    replica whose host has not all of their files yet; the shell says where the files of its ``stage`` of each lie."""

    number: int
    replicas: tuple[Endpoint, ...]
    gateways: tuple[Endpoint, ...]
    versions: Versions | None = None
    files: tuple[tuple[str, ...], ...] = ()
    stage: int = 0


Scope = Literal["infer"]
"""What a token lets one do: ask gateways."""


class Access(Struct, frozen=True, tag="access"):
    """To a gateway: the SHA-256 digests of the tokens that let one ask it, all of them."""

    digests: tuple[str, ...]


class Follower(Struct, frozen=True):
    """Who follows a training by its checkpoints: each so-manieth one becomes a version of the model ``name``, made of what
    ``content`` has, which are no weights."""

    name: str
    every: int
    content: ModelContent


class Followers(Struct, frozen=True, tag="followers"):
    """To a worker: all that follow its training so. The shell says where the files of each one's content lie."""

    followers: tuple[Follower, ...]
    files: tuple[tuple[str, ...], ...] = ()


class Lease(Struct, frozen=True, tag="lease"):
    """To a server: its node was in contact with a quorum, so workers may be shown new versions until ``until`` (this host's
    monotonic clock, in milliseconds)."""

    until: Instant


class Stop(Struct, frozen=True, tag="stop"):
    """End at once; a TERM follows."""


Machine = tuple[tuple[str, str], ...]
"""What of a host may change the bits of a result: names and values."""


class Bound(Struct, frozen=True, tag="bound"):
    """The child listens: tell the others. ``machine`` is for kinds that compare hosts in the replicated state."""

    address: str
    public_key: PublicKey
    pid: int
    machine: Machine = ()


class Moving(Struct, frozen=True, tag="moving"):
    """Sent every ``limits.ROLE_BEAT_MS``: the process is scheduled and not stopped."""


class Progressed(Struct, frozen=True, tag="progressed"):
    """From the lead worker, at most every ``limits.PROGRESS_MS`` and at the last step; the speed is that since the last one."""

    step: int
    steps: int | None
    samples_per_second: float
    loss: float | None


class Served(Struct, frozen=True, tag="served"):
    """From a gateway, every ``limits.SERVED_MS`` while something changes: since it began, and lately."""

    requests: int
    failed: int
    """Of these, those that were not answered as they should: refused for want of room, too late, or after a failure of ours."""
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    busy: float = 0.0
    """The share of the time that replicas computed lately, all of them together: 1.5 of two is three quarters of each."""


class Wanted(Struct, frozen=True, tag="wanted"):
    """From a gateway: it is asked, and there is no replica. ``number`` counts how often it has said so."""

    number: int


class Unusable(Struct, frozen=True, tag="unusable"):
    """From a deployment's replica: a version that it was told cannot be loaded, and why. It goes on with what it has.
    ``number`` counts how often it has said such a thing: a version may be given to it again."""

    version: str
    text: str
    number: int


class Ready(Struct, frozen=True, tag="ready"):
    """A worker that came while the training was going on has caught up: it may be given leaves."""


class CaughtUp(Struct, frozen=True, tag="caught-up"):
    """From the primary of ``shard``: ``server``, which was being filled in ``generation``, has all of it now."""

    generation: int
    shard: int
    server: int


class Unheard(Struct, frozen=True, tag="unheard"):
    """A peer of ``generation`` was not heard for ``silent_ms``, though it is waited for. The process counts its reports."""

    generation: int
    role: Role
    index: int
    silent_ms: int
    number: int


class Busy(Struct, frozen=True, tag="busy"):
    """The daemon has had no sign of a process for a while, though it computes: one call may hold the interpreter's lock. Or, when
    it ``is_over``, has signs again. The daemon counts how often."""

    number: int
    is_over: bool


class PartWritten(Struct, frozen=True, tag="part-written"):
    """A server's part of a checkpoint is durable at ``path`` (in its directory); the daemon takes it into the blobs.

    ``step`` counts finished steps. ``final`` marks the part that ``export`` reads.
    """

    step: int
    shard: int
    blob: BlobHash
    path: str
    size_bytes: int
    final: bool


class SliceWritten(Struct, frozen=True, tag="slice-written"):
    """The result of a slice is durable at ``path`` (in the replica's directory); the daemon takes it into the blobs.

    ``decided`` is that of the last ``Slices``; ``failed`` of the inputs are error rows.
    """

    decided: int
    slice: int
    blob: BlobHash
    path: str
    size_bytes: int
    failed: int


class Published(Struct, frozen=True, tag="published"):
    """From the lead worker: the parameters after ``step`` steps are to be a version of the model ``name``, which is made of
    ``content``. Its files are durable at ``paths`` (in the worker's directory), in their order; the daemon takes them into the
    blobs. ``at_unix`` is the clock of the worker."""

    name: str
    step: int
    content: ModelContent
    paths: tuple[str, ...]
    at_unix: int


class Completed(Struct, frozen=True, tag="completed"):
    """The role has done all its work: a worker's script returned 0, a server's final part is durable. Both stay until they are
    stopped: a server's last word to a worker may be lost, and is asked for again; a server may be lost with its final part,
    and a worker asks its successor for another."""


class Failed(Struct, frozen=True, tag="failed"):
    """The role cannot go on and knows why. ``kind`` is a ``reasons.RoleFailure`` value; ``text`` may have many lines
    (a traceback). ``starting`` is true when it never began its work."""

    kind: str
    text: str
    starting: bool = False


class Exited(Struct, frozen=True, tag="exited"):
    """Made by the supervisor, never by a child: the process is gone. ``signal`` is 0 when it returned ``code``."""

    code: int
    signal: int
    stalled: bool = False


class Started(Struct, frozen=True, tag="started"):
    """Made by the supervisor, never by a child: the process exists."""

    pid: int


ToRole = (
    TrainingLaunch
    | BatchLaunch
    | ReplicaLaunch
    | GatewayLaunch
    | Roster
    | Slices
    | Fleet
    | Access
    | Followers
    | Lease
    | Stop
)
Written = PartWritten | SliceWritten
"""A file of a role process that its daemon is to keep."""
FromRole = (
    Bound
    | Moving
    | Progressed
    | Served
    | Wanted
    | Unusable
    | Ready
    | CaughtUp
    | Unheard
    | Written
    | Published
    | Completed
    | Failed
)
RoleEvent = (
    Started
    | Bound
    | Progressed
    | Served
    | Wanted
    | Unusable
    | Ready
    | CaughtUp
    | Unheard
    | Busy
    | Written
    | Published
    | Completed
    | Failed
    | Exited
)
