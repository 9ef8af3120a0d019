"""Prose is made of reasons here, and nowhere else: ``status``, ``why`` and the log say the same."""

from collections.abc import Sequence

from dmi_protocol.reasons import (
    AlreadyServed,
    Asleep,
    Cancelled,
    CrashedOften,
    DiskFree,
    DiskFull,
    FilesAway,
    FilesLost,
    GivenUp,
    Inferred,
    Inferring,
    InferringWithout,
    InvitationExpired,
    InvitationUsed,
    IsYourself,
    JobEnded,
    JobGoesOn,
    LimitReached,
    Malformed,
    ModelInUse,
    ModelLost,
    NameTaken,
    NoCoordinator,
    NodeLost,
    NoQuorum,
    NoRoom,
    NotServed,
    NotServing,
    NotYet,
    PairSilent,
    PartsAway,
    Reason,
    Recovering,
    Resuming,
    RoleDied,
    RoleFailed,
    RoleUnready,
    Running,
    Serving,
    ServingWithout,
    Starting,
    Succeeded,
    TakingOver,
    TimedOut,
    TooFewNodes,
    TooLittleRoom,
    UnknownJob,
    UnknownMember,
    UnknownModel,
    UnknownToken,
    VersionUnusable,
    Waiting,
    WasExpelled,
    WasTurnedAway,
    Weakened,
)
from dmi_protocol.sizes import in_words

_NAMED = 3
"""Of many that are awaited so many are named."""


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
        case PairSilent(role, node, peer, peer_node, silent_ms):
            return f"{role} on {node} and {peer} on {peer_node} could not talk for {silent_ms / 1000:g} s, and it was replaced"
        case Recovering() | TakingOver() | Weakened() | PartsAway():
            return _of_training(reason)
        case Inferring() | InferringWithout() | Resuming() | Inferred():
            return _of_batch(reason)
        case Serving() | ServingWithout() | NotServing() | VersionUnusable() | Asleep():
            return _of_deployment(reason)
        case GivenUp(node, text):
            return f"planning the job ended the daemon of {node} twice, so it is given up: {_last_line(text)}"
        case CrashedOften(times, last):
            return f"{sentence(last)}; it was crash {times} without getting any further, so the job is given up"
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


def _of_training(reason: Recovering | TakingOver | Weakened | PartsAway) -> str:
    match reason:
        case Recovering():
            return _recovering(reason)
        case TakingOver(loss):
            return f"{sentence(loss)}; the others take over at this very step"
        case Weakened():
            return _weakened(reason)
        case PartsAway(loss, step, nodes):
            return (
                f"{sentence(loss)}; the checkpoint of step {step} has parts that only {_list(nodes)} can give: waiting"
            )


def _weakened(reason: Weakened) -> str:
    bare = f", {reason.bare} shards have no backup yet" if reason.bare else ""
    workers = _list(reason.workers)
    return f"{sentence(reason.loss)}; the job goes on with workers on {workers}{bare}{_coming(reason.coming)}"


def _coming(processes: int) -> str:
    return f"; {processes} processes are on their way" if processes else "; more nodes would be used"


def _of_batch(reason: Inferring | InferringWithout | Resuming | Inferred) -> str:
    match reason:
        case Inferring(nodes, done, inputs, failed):
            return f"running: {done} of {inputs} inputs done{_failed(failed)}; replicas on {_list(nodes)}"
        case InferringWithout(loss, nodes, coming):
            return f"{sentence(loss)}; the job goes on with replicas on {_list(nodes)}{_coming(coming)}"
        case Resuming(loss, done, inputs, ready, roles):
            when = f"{ready} of {roles} replicas are ready" if roles else "waiting for nodes"
            return f"{sentence(loss)}; the job goes on after {done} of {inputs} inputs: {when}"
        case Inferred(inputs, failed):
            return f"succeeded: {inputs} input{'' if inputs == 1 else 's'} done{_failed(failed)}"


def _of_deployment(reason: Serving | ServingWithout | NotServing | VersionUnusable | Asleep) -> str:
    match reason:
        case Asleep(model, gateways):
            return f"{model} is asleep: the next request wakes a replica; gateways on {_list(gateways)}"
        case VersionUnusable(version, current, text):
            return f"{version} cannot be loaded ({_last_line(text)}); {current} is served"
        case Serving(model, replicas, gateways, lacking):
            more = f"; for {lacking} more of its replicas no node has room" if lacking else ""
            return f"serving {model}: replicas on {_list(replicas)}, gateways on {_list(gateways)}{more}"
        case ServingWithout(loss, replicas, gateways, coming):
            where = f"replicas on {_list(replicas)} and gateways on {_list(gateways)}"
            return f"{sentence(loss)}; {where} go on{_coming(coming)}"
        case NotServing(loss, ready, roles):
            when = f"{ready} of {roles} processes are ready" if roles else "waiting for nodes"
            return f"{sentence(loss)}; requests wait: {when}"


def _failed(rows: int) -> str:
    return f", {rows} of them with an error" if rows else ""


def _recovering(reason: Recovering) -> str:
    whence = "from its beginning" if not reason.step else f"from the checkpoint of step {reason.step}"
    when = f": {reason.ready} of {reason.roles} role processes are ready" if reason.roles else ": waiting for nodes"
    return f"{sentence(reason.loss)}; the job goes on {whence}{when}"


def _of_mesh(reason: Reason) -> str:
    match reason:
        case FilesAway(nodes):
            return f"the job's files are on {_list(nodes)} alone, which cannot be reached: waiting"
        case FilesLost():
            return "every node that had the job's files has left the mesh or was expelled; submit it again"
        case ModelLost(model):
            return f"every node that had the model {model} has left the mesh or was expelled; add it and submit the job again"
        case NoQuorum(reachable, missing):
            voters = len(reachable) + len(missing)
            return (
                f"no quorum: only {len(reachable)} of {voters} voters can be reached; {_list(missing)} must come back"
            )
        case NoCoordinator():
            return "no coordinator yet: an election is under way"
        case TimedOut(within_ms):
            return f"not committed within {within_ms / 1000:g} s; asking again is safe"
        case Waiting(wanted, alive):
            return f"waiting for {wanted} nodes, {alive} are alive"
        case TooFewNodes() | NoRoom() | TooLittleRoom():
            return _of_room(reason)
        case Starting(ready, roles, awaited):
            names = [f"{role} on {node}" for role, node in awaited]
            rest = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
            whom = f"; waiting for {', '.join([*names[:_NAMED], *rest])}" if ready and names else ""
            return f"starting: {ready} of {roles} role processes are ready{whom}"
        case Running(workers, servers, busy):
            held = " and ".join(f"{role} on {node}" for role, node in busy[:_NAMED])
            told = f"; {held} gives no sign and computes: one call holds the interpreter's lock" if busy else ""
            return f"running: workers on {_list(workers)}, servers on {_list(servers)}{told}"
        case Succeeded(steps):
            return f"succeeded after {steps} step{'' if steps == 1 else 's'}; `dmi-node export` writes the weights"
        case _:
            return _refused(reason)


def _of_room(reason: TooFewNodes | NoRoom | TooLittleRoom) -> str:
    """Of what was not asked for nothing is said."""
    match reason:
        case TooFewNodes(role, wanted, nodes):
            return (
                f"{wanted} {role}s were asked for and the mesh has {nodes} nodes; ask for fewer, or let more hosts join"
            )
        case NoRoom(nodes, cpus, memory, spare):
            asked = (cpus, memory)
            left = [f"{name} has {_share(its, asked)}" for name, *its in spare[:_NAMED]]
            rest = [f"{len(spare) - _NAMED} more have too little, too"] if len(spare) > _NAMED else []
            where = "a node" if nodes == 1 else f"{nodes} nodes"
            return f"waiting for {where} with {_share(asked, asked)} left; {', '.join([*left, *rest])}"
        case TooLittleRoom(wanted, able, cpus, memory, largest):
            share, has = _share((cpus, memory), (cpus, memory)), _share(largest, (cpus, memory))
            if not able:
                return f"no node has {share} for jobs, the largest has {has}; ask for less, or let larger hosts join"
            times = f"{share} is asked for {wanted} times, and the mesh has that {able} times"
            return f"{times} (the largest node has {has}); ask for less, or let more hosts join"


def _share(has: Sequence[int], asked: Sequence[int]) -> str:
    cpus, memory = (max(0, count) for count in has)
    words = (f"{cpus} processor{'' if cpus == 1 else 's'}", in_words(memory))
    return " and ".join(word for word, wanted in zip(words, asked, strict=True) if wanted)


def _refused(reason: Reason) -> str:
    match reason:
        case Cancelled():
            return "cancelled"
        case NotYet(what):
            return f"{what} is not built yet; leave it out"
        case UnknownJob() | UnknownMember() | UnknownModel() | UnknownToken() | NotServed():
            return _unknown(reason)
        case ModelInUse() | JobEnded() | JobGoesOn() | AlreadyServed():
            return _at_another_time(reason)
        case InvitationUsed():
            return "the invitation is not known here: it was used already; ask for a new one with `dmi-node invite`"
        case InvitationExpired():
            return "the invitation has expired; ask for a new one with `dmi-node invite`"
        case NameTaken(name):
            return f"the name {name!r} is already taken; choose another one with --name"
        case DiskFull() | DiskFree() | IsYourself() | WasExpelled() | WasTurnedAway():
            return _of_node(reason)
        case LimitReached(what, limit):
            return f"there can be at most {limit} {what}"
        case Malformed(what, value):
            return f"{value[:80]!r} is no {what}"
        case _:
            return "the placement has changed meanwhile"


def _at_another_time(reason: ModelInUse | JobEnded | JobGoesOn | AlreadyServed) -> str:
    match reason:
        case AlreadyServed(model, job):
            return f"{model} is served already, by {job}; `dmi-node unserve {model}` ends it"
        case ModelInUse(model, job):
            return f"{model} is used by {job}: cancel it, or wait for its end"
        case JobEnded(job, state):
            return f"{job} has already {state}"
        case JobGoesOn(job, state):
            return f"{job} is {state}: cancel it, or wait for its end"


def _unknown(reason: UnknownJob | UnknownMember | UnknownModel | UnknownToken | NotServed) -> str:
    match reason:
        case UnknownToken(name):
            return f"no token is named {name!r}; `dmi-node token` lists them"
        case NotServed(name):
            return f"nothing is served as {name!r}; `dmi-node status` shows what is"
        case UnknownJob(name):
            return f"no job is named {name!r}; `dmi-node jobs` lists them"
        case UnknownMember(name):
            return f"no member is named {name!r}; `dmi-node members` lists them"
        case UnknownModel(name):
            return f"no model is named {name!r}; `dmi-node models` lists them"


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
