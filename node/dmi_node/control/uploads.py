"""Files that clients bring, and their second copies on other nodes."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Protocol

from dmi_node.control.server import Client, RefusalError
from dmi_node.storage.blobs import Blobs, NoRoomError, WrongHashError
from dmi_node.transport.library import Library
from dmi_protocol.identity import BlobHash, NodeId
from dmi_protocol.peer import Peer

_COPY_S = 5.0
_COPY_BYTES_PER_S = 4 << 20
"""Slower than this is no copying."""


class Node(Protocol):
    """The daemon, as far as uploads need it."""

    peer: Peer
    blobs: Blobs
    library: Library

    async def pin(self, blob: BlobHash) -> None:
        """The blob stays here for a while, if it is here."""
        ...


class Uploads:
    """Raises ``RefusalError``. Everything is streamed to the disk: nothing large is ever in memory."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def take(self, client: Client, files: Mapping[BlobHash, int], what: str) -> tuple[NodeId, ...]:
        """Ask the client for those of ``files`` (blobs, and their sizes in bytes) that are not here, and have all of them on
        another node, too, where there is one. Gives the nodes that have all of them. ``what`` they are is for people."""
        blobs = self._node.blobs
        for blob in files:
            await self._node.pin(blob)
        need = [blob for blob in files if not blobs.has(blob)]
        try:
            await asyncio.to_thread(blobs.check_room, sum(files[blob] for blob in need))
        except NoRoomError as error:
            name = self._node.peer.me.name
            raise RefusalError("refused", f"{what} find no room on {name}: {error}; look at `dmi-node df`") from error
        await client.send({"need": need})
        for blob in need:
            await self._receive(client, blob, files[blob], what)
        return (self._node.peer.me.node, *(await self._copy(files, what)))

    async def _receive(self, client: Client, blob: BlobHash, size: int, what: str) -> None:
        """One file in chunks, into the blobs."""
        directory, received = self._node.blobs.path(blob).parent, 0
        path = directory / f".upload-{secrets.token_hex(8)}"
        try:
            with await asyncio.to_thread(path.open, "xb") as file:
                while "chunk" in (piece := await client.receive()):
                    received += len(piece["chunk"])
                    if received > size:
                        raise RefusalError("usage", f"{what} are larger than was said")
                    await asyncio.to_thread(file.write, piece["chunk"])
            await asyncio.to_thread(self._node.blobs.adopt, path, blob)
        except WrongHashError as error:
            raise RefusalError("usage", f"{what} arrived damaged: {error}") from error
        except (TimeoutError, ConnectionError):
            raise
        except OSError as error:
            name = self._node.peer.me.name
            why = f"{what} cannot be stored on {name} ({error.strerror}): free some space under {directory}"
            raise RefusalError("refused", f"{why}, or ask another node") from error
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _copy(self, files: Mapping[BlobHash, int], what: str) -> tuple[NodeId, ...]:
        """One other node that has the files too; nobody, in a mesh of one. A witness is asked last, and may decline."""
        peer = self._node.peer
        members = peer.state.members.values() if peer.state is not None else ()
        witnesses = {member.node for member in members if member.witness}
        there = peer.alive() - {peer.me.node}
        others = sorted(there, key=lambda n: (n in witnesses, peer.standing(n) != "alive", n))
        for node in others[:3]:
            if await self._keep_at(node, files):
                return (node,)
        if there - witnesses:
            raise RefusalError("refused", f"no second node could store {what}; look at `dmi-node members`")
        return ()

    async def _keep_at(self, node: NodeId, files: Mapping[BlobHash, int]) -> bool:
        for blob, size in files.items():
            if not await self._node.library.keep_at(node, blob, _COPY_S + size / _COPY_BYTES_PER_S):
                return False
        return True
