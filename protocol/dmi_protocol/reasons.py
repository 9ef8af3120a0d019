"""Why: every reason is a value with fields. Its sentence is made in ``sentences.py`` and nowhere else.

``dmi-node why``, the log and every refusal show the same sentence.
"""

from msgspec import Struct

from dmi_protocol.identity import JobId


class NoQuorum(Struct, frozen=True, tag="no-quorum"):
    """Too few voters can be reached for anything to be decided."""

    reachable: tuple[str, ...]
    missing: tuple[str, ...]


class NoCoordinator(Struct, frozen=True, tag="no-coordinator"):
    """An election is under way."""


class TimedOut(Struct, frozen=True, tag="timed-out"):
    """What was asked was not committed in time; it may still be."""

    within_ms: int


class TooFewNodes(Struct, frozen=True, tag="too-few-nodes"):
    """The job wants more nodes than there are."""

    role: str
    wanted: int
    nodes: int


class Waiting(Struct, frozen=True, tag="waiting"):
    """The job is queued: others were there first, or nodes are away."""

    wanted: int
    alive: int


class NoRoom(Struct, frozen=True, tag="no-room"):
    """There are nodes enough, and too few of them have so much left that the job could be promised its share. ``spare`` is what
    each has left: its name, processors and bytes."""

    nodes: int
    cpus: int
    memory: int
    spare: tuple[tuple[str, int, int], ...]


class TooLittleRoom(Struct, frozen=True, tag="too-little-room"):
    """The job asks ``wanted`` times for a share that the mesh could promise ``able`` times, if there were no other job.
    ``largest`` has the processors and bytes of the largest node."""

    wanted: int
    able: int
    cpus: int
    memory: int
    largest: tuple[int, int]


class Starting(Struct, frozen=True, tag="starting"):
    """Role processes are being started. ``awaited`` are those that are not ready yet, by role and node."""

    ready: int
    roles: int
    awaited: tuple[tuple[str, str], ...] = ()


class Running(Struct, frozen=True, tag="running"):
    """All is well. ``busy`` are processes, by role and node, that give no sign and compute."""

    workers: tuple[str, ...]
    servers: tuple[str, ...]
    busy: tuple[tuple[str, str], ...] = ()


class Inferring(Struct, frozen=True, tag="inferring"):
    """All is well: ``done`` of ``inputs`` inputs have a result, and ``failed`` of these are error rows."""

    nodes: tuple[str, ...]
    done: int
    inputs: int
    failed: int


class Inferred(Struct, frozen=True, tag="inferred"):
    """Every input has its result."""

    inputs: int
    failed: int


class Serving(Struct, frozen=True, tag="serving"):
    """All is well: ``model`` is served."""

    model: str
    replicas: tuple[str, ...]
    gateways: tuple[str, ...]
    lacking: int = 0
    """How many replicas were asked for, and have no room."""


class VersionUnusable(Struct, frozen=True, tag="version-unusable"):
    """A replica could not load a version that it was told; ``current`` is computed with instead."""

    version: str
    current: str
    text: str


class Asleep(Struct, frozen=True, tag="asleep"):
    """Nobody has asked for long, so nobody computes; a request changes that."""

    model: str
    gateways: tuple[str, ...]


class Succeeded(Struct, frozen=True, tag="succeeded"):
    """All steps are done and the final parameters are durable."""

    steps: int


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """Somebody asked for it."""


class RoleFailed(Struct, frozen=True, tag="role-failed"):
    """A role process said why it cannot go on. ``text`` may be a traceback."""

    role: str
    node: str
    kind: str
    text: str


class RoleDied(Struct, frozen=True, tag="role-died"):
    """A role process ended without a word."""

    role: str
    node: str
    code: int
    signal: int
    stalled: bool


class RoleUnready(Struct, frozen=True, tag="role-unready"):
    """A role process was started and did not bind its socket in time. Fetching its files is not counted."""

    role: str
    node: str
    within_ms: int


class NodeLost(Struct, frozen=True, tag="node-lost"):
    """A node that played a role is dead or has left."""

    role: str
    node: str


class FilesAway(Struct, frozen=True, tag="files-away"):
    """The job waits for nodes that alone have its files."""

    nodes: tuple[str, ...]


class FilesLost(Struct, frozen=True, tag="files-lost"):
    """No member has the job's files any more."""


class ModelLost(Struct, frozen=True, tag="model-lost"):
    """No member has all files of the model that a job computes with."""

    model: str


class PairSilent(Struct, frozen=True, tag="pair-silent"):
    """A role process and one that it needs could not talk, though both nodes are alive: it was replaced."""

    role: str
    node: str
    peer: str
    peer_node: str
    silent_ms: int


Loss = RoleFailed | RoleDied | RoleUnready | NodeLost | PairSilent
"""Why a placement cannot go on, and the job can."""


class Recovering(Struct, frozen=True, tag="recovering"):
    """The job is placed again after a loss, from the checkpoint of ``step`` or from its beginning. ``roles`` is 0 before
    it has a new placement."""

    loss: Loss
    step: int | None
    ready: int
    roles: int


class TakingOver(Struct, frozen=True, tag="taking-over"):
    """Somebody was lost, and the others are about to share out what it did."""

    loss: Loss


class Weakened(Struct, frozen=True, tag="weakened"):
    """A job goes on after a loss, on fewer processes or with fewer copies than it should have. ``bare`` are the shards
    without a backup, ``coming`` the processes that are on their way."""

    loss: Loss
    workers: tuple[str, ...]
    bare: int
    coming: int


class InferringWithout(Struct, frozen=True, tag="inferring-without"):
    """A batch inference goes on after a loss, on fewer replicas than it should have; ``coming`` are on their way."""

    loss: Loss
    nodes: tuple[str, ...]
    coming: int


class Resuming(Struct, frozen=True, tag="resuming"):
    """A batch inference has lost its last replica. ``roles`` is 0 before it has a new placement."""

    loss: Loss
    done: int
    inputs: int
    ready: int
    roles: int


class ServingWithout(Struct, frozen=True, tag="serving-without"):
    """A deployment goes on after a loss, on fewer processes than it should have; ``coming`` are on their way."""

    loss: Loss
    replicas: tuple[str, ...]
    gateways: tuple[str, ...]
    coming: int


class NotServing(Struct, frozen=True, tag="not-serving"):
    """A deployment has lost its last replica, or its last gateway. ``roles`` is 0 before it has a new placement."""

    loss: Loss
    ready: int
    roles: int


class PartsAway(Struct, frozen=True, tag="parts-away"):
    """The job waits for nodes that alone have parts of its checkpoint."""

    loss: Loss
    step: int
    nodes: tuple[str, ...]


class CrashedOften(Struct, frozen=True, tag="crashed-often"):
    """Role processes crash again and again, and the job gets no further."""

    times: int
    last: Loss


class GivenUp(Struct, frozen=True, tag="given-up"):
    """Planning the job has ended the daemon of the coordinator ``node`` twice. ``text`` is the last line of the traceback."""

    node: str
    text: str


class NotYet(Struct, frozen=True, tag="not-yet"):
    """Part of the design, and not built yet."""

    what: str


class UnknownJob(Struct, frozen=True, tag="unknown-job"):
    """No job of that name."""

    job: str


class JobEnded(Struct, frozen=True, tag="job-ended"):
    """Too late."""

    job: JobId
    state: str


class JobGoesOn(Struct, frozen=True, tag="job-goes-on"):
    """It is not over."""

    job: JobId
    state: str


class InvitationUsed(Struct, frozen=True, tag="invitation-used"):
    """The invitation is unknown: used already, withdrawn, or of another mesh."""


class InvitationExpired(Struct, frozen=True, tag="invitation-expired"):
    """The invitation is too old."""


class AlreadyServed(Struct, frozen=True, tag="already-served"):
    """A model is served once at a time."""

    model: str
    job: JobId


class NotServed(Struct, frozen=True, tag="not-served"):
    """Nothing of that name is served."""

    name: str


class NameTaken(Struct, frozen=True, tag="name-taken"):
    """Two nodes cannot have one name, and two jobs cannot have one id."""

    name: str


class UnknownModel(Struct, frozen=True, tag="unknown-model"):
    """No model, or no version, of that name."""

    name: str


class ModelInUse(Struct, frozen=True, tag="model-in-use"):
    """A version that a job uses stays."""

    model: str
    job: str


class UnknownMember(Struct, frozen=True, tag="unknown-member"):
    """No member of that name."""

    name: str


class UnknownToken(Struct, frozen=True, tag="unknown-token"):
    """No token of that name."""

    name: str


class DiskFull(Struct, frozen=True, tag="disk-full"):
    """A node can make nothing durable, so it promises nothing."""

    node: str
    cause: str


class DiskFree(Struct, frozen=True, tag="disk-free"):
    """It can again."""

    node: str


class IsYourself(Struct, frozen=True, tag="is-yourself"):
    """A node is not expelled through itself."""

    name: str
    is_last: bool
    """Is it the last member?"""


class WasExpelled(Struct, frozen=True, tag="was-expelled"):
    """This node is a member no more."""


class WasTurnedAway(Struct, frozen=True, tag="was-turned-away"):
    """Most of the others answer, and none of them takes this node's key."""

    by: tuple[str, ...]


class LimitReached(Struct, frozen=True, tag="limit-reached"):
    """A bound of ``limits.py``."""

    what: str
    limit: int


class Malformed(Struct, frozen=True, tag="malformed"):
    """A value that nobody could use."""

    what: str
    value: str


class Stale(Struct, frozen=True, tag="stale"):
    """The command belongs to a placement that is not in force any more."""


Reason = (
    NoQuorum
    | NoCoordinator
    | TimedOut
    | TooFewNodes
    | Waiting
    | NoRoom
    | TooLittleRoom
    | Starting
    | Running
    | Inferring
    | Inferred
    | Serving
    | ServingWithout
    | NotServing
    | Asleep
    | VersionUnusable
    | Succeeded
    | Cancelled
    | RoleFailed
    | RoleDied
    | RoleUnready
    | NodeLost
    | PairSilent
    | FilesAway
    | FilesLost
    | ModelLost
    | Recovering
    | TakingOver
    | Weakened
    | InferringWithout
    | Resuming
    | PartsAway
    | CrashedOften
    | GivenUp
    | NotYet
    | UnknownJob
    | JobEnded
    | JobGoesOn
    | InvitationUsed
    | InvitationExpired
    | AlreadyServed
    | NotServed
    | NameTaken
    | UnknownMember
    | UnknownModel
    | UnknownToken
    | ModelInUse
    | DiskFull
    | DiskFree
    | IsYourself
    | WasExpelled
    | WasTurnedAway
    | LimitReached
    | Malformed
    | Stale
)
