"""What each command does to the state: total (any command, in any state) and deterministic. Those of jobs are in
``on_jobs.py``."""

import re

from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.address import is_address
from dmi_protocol.cluster.command import (
    AddModel,
    AddToken,
    Admit,
    Command,
    CutModel,
    Drain,
    HoldBlob,
    Invite,
    PublishVersion,
    Readdress,
    Recopy,
    Remove,
    RemoveModel,
    RemoveToken,
    Resize,
)
from dmi_protocol.cluster.on_blobs import do_for_blobs
from dmi_protocol.cluster.on_jobs import do_for_job
from dmi_protocol.cluster.state import ClusterState, MemberRecord, Outcome, Token
from dmi_protocol.identity import is_public_key, node_id
from dmi_protocol.reasons import (
    InvitationExpired,
    InvitationUsed,
    LimitReached,
    Malformed,
    NameTaken,
    UnknownMember,
    UnknownToken,
)

_DONE = Outcome()
_DIGEST = re.compile(r"[0-9a-f]{64}")


def apply(state: ClusterState, index: int, command: Command) -> Outcome:
    """Change ``state`` as the entry at ``index`` says. A request that was applied before gives its old outcome."""
    state.applied = index
    known = state.requests.get(command.request)
    if known is not None:
        return known
    return _remember(state, command, _do(state, index, command))


def leave_out(state: ClusterState, index: int, command: Command) -> Outcome:
    """What ``apply`` of the entry at ``index`` raised an exception for, twice, here and so on every node: it changes nothing, and
    is refused whenever it comes again."""
    state.applied = index
    return _remember(state, command, Outcome(refusal=Malformed("command", type(command).__name__)))


def _remember(state: ClusterState, command: Command, outcome: Outcome) -> Outcome:
    state.requests[command.request] = outcome
    while len(state.requests) > limits.REQUESTS_REMEMBERED:
        del state.requests[next(iter(state.requests))]
    return outcome


def _do(state: ClusterState, index: int, command: Command) -> Outcome:
    match command:
        case Invite():
            return _invite(state, command)
        case Admit():
            return _admit(state, command)
        case Remove():
            return _remove(state, command)
        case Readdress():
            return _readdress(state, command)
        case Resize():
            return _resize(state, command)
        case Drain():
            return _drain(state, command)
        case AddToken():
            return _add_token(state, command)
        case RemoveToken():
            return _remove_token(state, command)
        case AddModel() | RemoveModel() | PublishVersion() | CutModel() | Recopy() | HoldBlob():
            return do_for_blobs(state, command)
        case _:
            return do_for_job(state, index, command)


# Members


def _invite(state: ClusterState, command: Invite) -> Outcome:
    if len(state.invitations) >= limits.INVITATIONS:
        oldest = min(state.invitations, key=lambda key: (state.invitations[key], key))
        del state.invitations[oldest]
    state.invitations[command.key] = command.expires_unix
    return _DONE


def _admit(state: ClusterState, command: Admit) -> Outcome:
    expires = state.invitations.get(command.invitation)
    if expires is None:
        return Outcome(refusal=InvitationUsed())
    if command.at_unix > expires:
        del state.invitations[command.invitation]
        return Outcome(refusal=InvitationExpired())
    if not is_public_key(command.public_key):
        return Outcome(refusal=Malformed("public key", command.public_key))
    if not is_address(command.address):
        return Outcome(refusal=Malformed("address HOST:PORT", command.address))
    if not command.name.isprintable() or not command.name:
        return Outcome(refusal=Malformed("name", command.name))
    node = node_id(command.public_key)
    if any(member.name == command.name for member in state.members.values() if member.node != node):
        return Outcome(refusal=NameTaken(command.name))
    if len(command.name) > limits.NAME_CHARACTERS:
        return Outcome(refusal=LimitReached("characters in a name", limits.NAME_CHARACTERS))
    if len(state.members) >= limits.MEMBERS:
        return Outcome(refusal=LimitReached("members", limits.MEMBERS))
    del state.invitations[command.invitation]
    state.members[node] = MemberRecord(node, command.name, command.address, command.public_key, command.witness)
    return Outcome(node)


def _remove(state: ClusterState, command: Remove) -> Outcome:
    if state.members.pop(command.node, None) is None:
        return Outcome(refusal=UnknownMember(command.node))
    return _DONE


def _readdress(state: ClusterState, command: Readdress) -> Outcome:
    old = state.members.get(command.node)
    if old is None:
        return Outcome(refusal=UnknownMember(command.node))
    if not is_address(command.address):
        return Outcome(refusal=Malformed("address HOST:PORT", command.address))
    state.members[old.node] = replace(old, address=command.address)
    return _DONE


def _resize(state: ClusterState, command: Resize) -> Outcome:
    old = state.members.get(command.node)
    if old is None:
        return Outcome(refusal=UnknownMember(command.node))
    if min(command.capacity.cpus, command.capacity.memory) < 0:
        return Outcome(refusal=Malformed("capacity", str(command.capacity)))
    state.members[old.node] = replace(old, capacity=command.capacity)
    return _DONE


def _drain(state: ClusterState, command: Drain) -> Outcome:
    old = state.members.get(command.node)
    if old is None:
        return Outcome(refusal=UnknownMember(command.node))
    state.members[old.node] = replace(old, draining=command.on)
    return _DONE


# Tokens


def _add_token(state: ClusterState, command: AddToken) -> Outcome:
    known = state.tokens.get(command.name)
    if known is not None:
        return Outcome() if known.digest == command.digest else Outcome(refusal=NameTaken(command.name))
    if not command.name.isprintable() or not 0 < len(command.name) <= limits.NAME_CHARACTERS:
        return Outcome(refusal=Malformed("name", command.name))
    if _DIGEST.fullmatch(command.digest) is None:
        return Outcome(refusal=Malformed("SHA-256", command.digest))
    if len(state.tokens) >= limits.TOKENS:
        return Outcome(refusal=LimitReached("tokens; `dmi-node token rm` removes some", limits.TOKENS))
    state.tokens[command.name] = Token(command.digest, command.scope, command.at_unix)
    return _DONE


def _remove_token(state: ClusterState, command: RemoveToken) -> Outcome:
    if state.tokens.pop(command.name, None) is None:
        return Outcome(refusal=UnknownToken(command.name))
    return _DONE
