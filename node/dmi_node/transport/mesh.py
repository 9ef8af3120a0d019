"""Links to the members, the port that hears them, and whose key counts: the peer says, this does."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq.asyncio
from msgspec import Struct

from dmi_node.tasks import Tasks
from dmi_node.transport.refusals import Refusals
from dmi_protocol import limits
from dmi_protocol.codec import open_envelope, seal
from dmi_protocol.effects import Link as LinkEffect
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.events import Connected, Disconnected, Event, Received, TurnedAway
from dmi_protocol.identity import NodeId, PublicKey, node_id
from dmi_protocol.messages.blobs import BlobMessage
from dmi_protocol.messages.control import Join
from dmi_protocol.messages.mesh import Wire
from dmi_wire.keys import KeyPair
from dmi_wire.link import Link
from dmi_wire.listener import Heard, Listener
from dmi_wire.zap import Gatekeeper

DOMAIN = "dmi-mesh"
_log = logging.getLogger("dmi.mesh")
_NEWCOMER_S = 1.0
_JOIN_BYTES = 4096
_LAST_WORD_MS = 500


class _Member(Struct):
    name: str
    address: str
    public_key: PublicKey
    link: Link
    watch: "asyncio.Task[None]"


class MeshTransport:
    """``give`` takes events for the peer, ``blob`` what the stores answer, ``join`` what an invited stranger says."""

    def __init__(
        self,
        keys: KeyPair,
        tasks: Tasks,
        refusals: Refusals,
        give: Callable[[Event], None],
        blob: Callable[[NodeId, BlobMessage], None],
        join: Callable[[Heard, Join], None],
    ) -> None:
        self._keys = keys
        self._tasks = tasks
        self._refusals = refusals
        self._give = give
        self._blob = blob
        self._join = join
        self._context = zmq.asyncio.Context(io_threads=1)
        self._members: dict[NodeId, _Member] = {}
        self._nodes: dict[PublicKey, NodeId] = {}
        self._invitations: frozenset[PublicKey] = frozenset()
        self._gatekeeper = Gatekeeper(self._context, DOMAIN, self._is_allowed, self._denied)
        self._listener = Listener(self._context, keys, DOMAIN)

    def listen(self, host: str, port: int) -> int:
        """Hear on this address; gives the port. Raises ``OSError``."""
        bound = self._listener.bind(host, port)
        self._tasks.start(self._gatekeeper.serve(), "zap")
        self._tasks.start(self._hear(), "hear")
        self._tasks.start(self._listener.watch(self._garbage), "handshakes")
        return bound

    def _is_allowed(self, key: PublicKey) -> bool:
        return key in self._nodes or key in self._invitations

    def _denied(self, key: PublicKey, address: str) -> None:
        """A newcomer may knock before its admission has got here, so a key is a stranger's only if it stays unknown."""
        asyncio.get_running_loop().call_later(_NEWCOMER_S, self._count_stranger, key, address)

    def _count_stranger(self, key: PublicKey, address: str) -> None:
        if self._is_allowed(key):
            return
        self._refusals.add("stranger", key, f"a stranger from {address} without a key that counts here")

    def _garbage(self) -> None:
        self._refusals.add("garbage", "somebody", "bytes on the mesh port that are no handshake")

    # Effects

    def link(self, effect: LinkEffect) -> None:
        """Keep a connection to a member, and accept its key."""
        known = self._members.get(effect.node)
        if known is not None and (known.address, known.public_key) == (effect.address, effect.public_key):
            return
        if known is not None:
            self._close(known)
        link = Link(self._context, self._keys, effect.address, effect.public_key)
        node = effect.node
        watching = link.watch(
            lambda: self._link_is(effect.name, Connected(node)),
            lambda: self._link_is(effect.name, Disconnected(node)),
            lambda: self._link_is(effect.name, TurnedAway(node)),
        )
        task = self._tasks.start(watching, f"link to {effect.name}")
        self._members[node] = _Member(effect.name, effect.address, effect.public_key, link, task)
        self._nodes[effect.public_key] = node

    def _link_is(self, name: str, event: Connected | Disconnected | TurnedAway) -> None:
        _log.debug("link to %s: %s", name, type(event).__name__.lower())
        self._give(event)

    def unlink(self, node: NodeId) -> None:
        """Let its key count no more, and close the connection behind the last word that it was sent."""
        member = self._members.pop(node, None)
        if member is not None:
            self._nodes.pop(member.public_key, None)
            self._close(member, _LAST_WORD_MS)

    def _close(self, member: _Member, linger_ms: int = 0) -> None:
        member.watch.cancel()
        member.link.close(linger_ms)

    def redial(self, node: NodeId) -> None:
        """Make the connection to a member anew."""
        if node in self._members:
            self._members[node].link.redial()

    def invite(self, keys: Sequence[PublicKey]) -> None:
        """These keys may say ``Join``."""
        self._invitations = frozenset(keys)

    def send(self, to: NodeId, message: Wire) -> None:
        """Give a message to the network; it may be lost."""
        member = self._members.get(to)
        if member is not None:
            member.link.send(seal(message))

    def answer(self, heard: Heard, message: Struct) -> None:
        """Answer one that was invited."""
        self._listener.answer(heard, seal(message))

    # Hearing

    async def _hear(self) -> None:
        while True:
            heard = await self._listener.receive()
            try:
                self._take(heard)
            except RemoteProtocolError as error:
                reason = "oversize" if sum(map(len, heard.frames)) > limits.MESSAGE_BYTES else "malformed"
                self._refusals.add(reason, self._name(heard.key), str(error))

    def _take(self, heard: Heard) -> None:
        if len(heard.frames) != 1:
            raise RemoteProtocolError(f"{len(heard.frames)} frames where one was expected")
        node = self._nodes.get(heard.key)
        if node is not None:
            message = open_envelope(heard.frames[0], Wire)
            if isinstance(message, BlobMessage):
                self._blob(node, message)
            else:
                self._give(Received(node, message))
        elif heard.key in self._invitations:
            if len(heard.frames[0]) > _JOIN_BYTES:
                raise RemoteProtocolError(f"{len(heard.frames[0])} bytes for a `join`")
            self._join(heard, open_envelope(heard.frames[0], Join))
        else:
            self._refusals.add("revoked", heard.key, "a key that does not count any more, on an open connection")

    def _name(self, key: PublicKey) -> str:
        member = self._members.get(node_id(key))
        return member.name if member is not None else key

    def close(self) -> None:
        """Hear and speak no more."""
        for member in self._members.values():
            self._close(member)
        self._members.clear()
        self._listener.close()
        self._gatekeeper.close()
        self._context.destroy(linger=0)
