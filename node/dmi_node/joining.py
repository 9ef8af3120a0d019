"""Invitations: a line of text that lets one new node in, once."""

import asyncio
import base64
import binascii
import zlib

import msgspec
import zmq.asyncio

from dmi_node import clock
from dmi_protocol import reasons
from dmi_protocol.codec import open_envelope, seal
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.control import Join, Refused, Welcomed
from dmi_protocol.sentences import sentence
from dmi_wire.keys import KeyFileError, KeyPair
from dmi_wire.link import Link

_PREFIX = "dmi-"
_TRY_S = 3.0
_ADDRESSES = 5
_PASSING = reasons.NoQuorum | reasons.NoCoordinator | reasons.TimedOut | reasons.DiskFull
"""What a mesh says that cannot decide now; no quorum is lost for good."""


class JoinError(Exception):
    """The invitation did not let this node in. The text says why, and what to do."""


class MeshAwayError(JoinError):
    """Nobody could decide about the invitation. It may be good, so trying again later may help."""


class _TurnedAway:
    """The node that was asked does not know the invitation's key."""


class Invitation(msgspec.Struct, frozen=True):
    """Who can be asked (address and key), the one-time secret, and until when."""

    mesh: str
    nodes: tuple[tuple[str, PublicKey], ...]
    secret: str
    expires_unix: int

    def token(self) -> str:
        """One printable word. Whoever has it can join, so it is to be kept like a password."""
        body = msgspec.msgpack.encode(self)
        return _PREFIX + base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")

    @classmethod
    def of_token(cls, token: str) -> "Invitation":
        """Raises ``JoinError`` when the token is not whole."""
        token = token.strip()
        try:
            raw = base64.urlsafe_b64decode(token.removeprefix(_PREFIX) + "=" * (-len(token.removeprefix(_PREFIX)) % 4))
            if not token.startswith(_PREFIX) or zlib.crc32(raw[4:]).to_bytes(4, "big") != raw[:4]:
                raise JoinError("the invitation is not whole: copy it again, from `dmi-` to its end")
            return msgspec.msgpack.decode(raw[4:], type=cls)
        except (binascii.Error, msgspec.DecodeError, ValueError) as error:
            raise JoinError("the invitation is not whole: copy it again, from `dmi-` to its end") from error


async def redeem(token: str, join: Join) -> Welcomed:
    """Ask the nodes that the token names, one after the other, to let us in.

    Raises ``MeshAwayError`` when nobody could decide, ``JoinError`` when the invitation is good for nothing. Asking again
    after a lost answer is safe: the mesh does it once, and welcomes the same key again.
    """
    invitation = Invitation.of_token(token)
    try:
        keys = KeyPair.of_secret(invitation.secret)
    except KeyFileError as error:
        raise JoinError(f"the invitation is damaged: {error}") from error
    context = zmq.asyncio.Context()
    undecided, turned_away = [], []
    try:
        for address, server in invitation.nodes[:_ADDRESSES]:
            answer = await _ask(context, keys, address, server, join)
            if isinstance(answer, Welcomed):
                return answer
            if isinstance(answer, Refused) and not isinstance(answer.reason, _PASSING):
                raise JoinError(f"{address} refuses: {sentence(answer.reason)}")
            if isinstance(answer, Refused):
                undecided.append(f"{address} ({sentence(answer.reason)})")
                await asyncio.sleep(_TRY_S)
            elif isinstance(answer, _TurnedAway):
                turned_away.append(address)
            else:
                undecided.append(address)
    finally:
        context.destroy(linger=0)
    raise _failure(invitation, undecided, turned_away)


def _failure(invitation: Invitation, undecided: list[str], turned_away: list[str]) -> JoinError:
    """One that was started together with its mesh may turn us away too early; all of them, for so long, will not."""
    if not undecided:
        return JoinError(
            f"{', '.join(turned_away)}: the invitation is not known there, so it was used already, or withdrawn; ask for a new "
            "one with `dmi-node invite`"
        )
    if clock.unix() > invitation.expires_unix:
        return JoinError(
            f"no answer from {', '.join(undecided)}, and the invitation has expired; ask for a new one with "
            "`dmi-node invite`"
        )
    return MeshAwayError(
        f"no answer while joining from {', '.join(undecided)}: down, or not to be reached from here; the invitation is kept, "
        "so start this node again when they are back"
    )


async def _ask(
    context: zmq.asyncio.Context, keys: KeyPair, address: str, server: PublicKey, join: Join
) -> Welcomed | Refused | _TurnedAway | None:
    link = Link(context, keys, address, server)
    connected = asyncio.Event()
    watch = asyncio.create_task(link.watch(connected.set, lambda: None))
    try:
        await asyncio.wait_for(connected.wait(), _TRY_S)
        link.send(seal(join))
        answer = await link.receive(4 * _TRY_S)
        found: Welcomed | Refused | None = None if answer is None else open_envelope(answer, Welcomed | Refused)
    except (TimeoutError, RemoteProtocolError):
        return _TurnedAway() if link.turned_away and not connected.is_set() else None
    else:
        return found
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        link.close()
