"""Why: every reason is a value with fields, and its sentence is made here and nowhere else.

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


class Starting(Struct, frozen=True, tag="starting"):
    """Role processes are being started."""

    ready: int
    roles: int


class Running(Struct, frozen=True, tag="running"):
    """All is well."""

    workers: tuple[str, ...]
    servers: tuple[str, ...]


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
    """A role process did not get ready in time."""

    role: str
    node: str
    within_ms: int


class NodeLost(Struct, frozen=True, tag="node-lost"):
    """A node that played a role is dead or has left."""

    role: str
    node: str


class PartLost(Struct, frozen=True, tag="part-lost"):
    """A part of the checkpoint could not be fetched by a node that has to go on from it."""

    node: str
    detail: str


class BundleLost(Struct, frozen=True, tag="bundle-lost"):
    """The job's files could not be fetched."""

    node: str
    detail: str


Loss = RoleFailed | RoleDied | NodeLost | PartLost | BundleLost
"""Why a placement cannot go on, and the job can."""


class Recovering(Struct, frozen=True, tag="recovering"):
    """The job is placed again after a loss, from the checkpoint of ``step`` or from its beginning. ``roles`` is 0 before
    it has a new placement."""

    loss: Loss
    step: int | None
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


class InvitationUsed(Struct, frozen=True, tag="invitation-used"):
    """The invitation is unknown: used already, withdrawn, or of another mesh."""


class InvitationExpired(Struct, frozen=True, tag="invitation-expired"):
    """The invitation is too old."""


class NameTaken(Struct, frozen=True, tag="name-taken"):
    """Two nodes cannot have one name, and two jobs cannot have one id."""

    name: str


class UnknownMember(Struct, frozen=True, tag="unknown-member"):
    """No member of that name."""

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
    | Starting
    | Running
    | Succeeded
    | Cancelled
    | RoleFailed
    | RoleDied
    | RoleUnready
    | NodeLost
    | PartLost
    | Recovering
    | PartsAway
    | CrashedOften
    | BundleLost
    | NotYet
    | UnknownJob
    | JobEnded
    | InvitationUsed
    | InvitationExpired
    | NameTaken
    | UnknownMember
    | DiskFull
    | DiskFree
    | IsYourself
    | WasExpelled
    | WasTurnedAway
    | LimitReached
    | Malformed
    | Stale
)


def sentence(reason: Reason) -> str:
    """One line for people. What a role process said at length is in ``detail``."""
    match reason:
        case RoleFailed(role, node, kind, text):
            return f"{role} on {node} failed ({kind}): {_last_line(text)}"
        case RoleDied():
            return _died(reason)
        case RoleUnready(role, node, within_ms):
            return f"{role} on {node} was not ready within {within_ms / 1000:g} s; see `dmi-node logs`"
        case NodeLost(role, node):
            return f"{node}, which played {role}, is gone"
        case PartLost(node, detail):
            return f"{node} could not fetch a part of the checkpoint: {detail}"
        case Recovering():
            return _recovering(reason)
        case PartsAway(loss, step, nodes):
            return (
                f"{sentence(loss)}; the checkpoint of step {step} has parts that only {_list(nodes)} can give: waiting"
            )
        case CrashedOften(times, last):
            return f"{sentence(last)}; it was crash {times} without getting any further, so the job is given up"
        case BundleLost(node, detail):
            return f"{node} could not fetch the job's files: {detail}"
        case _:
            return _of_mesh(reason)


def _died(reason: RoleDied) -> str:
    if reason.stalled:
        how = "stopped moving and was ended"
    elif reason.signal:
        how = f"was killed by signal {reason.signal}" + (" (out of memory?)" if reason.signal == 9 else "")
    else:
        how = f"ended with code {reason.code} without saying why"
    return f"{reason.role} on {reason.node} {how}; see `dmi-node logs`"


def _recovering(reason: Recovering) -> str:
    whence = "from its beginning" if not reason.step else f"from the checkpoint of step {reason.step}"
    when = f": {reason.ready} of {reason.roles} role processes are ready" if reason.roles else ": waiting for nodes"
    return f"{sentence(reason.loss)}; the job goes on {whence}{when}"


def _of_mesh(reason: Reason) -> str:
    match reason:
        case NoQuorum(reachable, missing):
            voters = len(reachable) + len(missing)
            return (
                f"no quorum: only {len(reachable)} of {voters} voters can be reached; {_list(missing)} must come back"
            )
        case NoCoordinator():
            return "no coordinator yet: an election is under way"
        case TimedOut(within_ms):
            return f"not committed within {within_ms / 1000:g} s; asking again is safe"
        case TooFewNodes(role, wanted, nodes):
            return (
                f"{wanted} {role}s were asked for and the mesh has {nodes} nodes; ask for fewer, or let more hosts join"
            )
        case Waiting(wanted, alive):
            return f"waiting for {wanted} nodes, {alive} are alive"
        case Starting(ready, roles):
            return f"starting: {ready} of {roles} role processes are ready"
        case Running(workers, servers):
            return f"running: workers on {_list(workers)}, servers on {_list(servers)}"
        case Succeeded(steps):
            return f"succeeded after {steps} step{'' if steps == 1 else 's'}; `dmi-node export` writes the weights"
        case _:
            return _refused(reason)


def _refused(reason: Reason) -> str:
    match reason:
        case Cancelled():
            return "cancelled"
        case NotYet(what):
            return f"{what} is not built yet; leave it out"
        case UnknownJob(job):
            return f"no job is named {job!r}; `dmi-node jobs` lists them"
        case JobEnded(job, state):
            return f"{job} has already {state}"
        case InvitationUsed():
            return "the invitation is not known here: it was used already; ask for a new one with `dmi-node invite`"
        case InvitationExpired():
            return "the invitation has expired; ask for a new one with `dmi-node invite`"
        case NameTaken(name):
            return f"the name {name!r} is already taken; choose another one with --name"
        case UnknownMember(name):
            return f"no member is named {name!r}; `dmi-node members` lists them"
        case DiskFull() | DiskFree() | IsYourself() | WasExpelled() | WasTurnedAway():
            return _of_node(reason)
        case LimitReached(what, limit):
            return f"there can be at most {limit} {what}"
        case Malformed(what, value):
            return f"{value[:80]!r} is no {what}"
        case _:
            return "the placement has changed meanwhile"


def _of_node(reason: DiskFull | DiskFree | IsYourself | WasExpelled | WasTurnedAway) -> str:
    again = "to bring it back, move its home away and join again with a new invitation"
    match reason:
        case DiskFull(node, cause):
            told = f"{node} cannot write to its disk ({cause})"
            return f"{told}, so it votes on nothing and gets no roles until it can; free some space there"
        case DiskFree(node):
            return f"{node} can write to its disk again"
        case IsYourself(name, is_last) if is_last:
            return f"{name} is the last member: `dmi-node leave` ends it, and the mesh with it"
        case IsYourself(name):
            return f"{name} is the node that you ask: `dmi-node leave` takes it out of the mesh, or ask another node"
        case WasExpelled():
            return f"this node was expelled from the mesh; {again}"
        case WasTurnedAway(by):
            return f"{_list(by)} turned this node away: it was expelled, or has left, while it was away; {again}"


def detail(reason: Reason) -> str | None:
    """All that a role process said, when that is more than a line."""
    return reason.text if isinstance(reason, RoleFailed) and "\n" in reason.text.strip() else None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nobody"
