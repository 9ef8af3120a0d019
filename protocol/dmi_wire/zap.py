"""Who may open a connection: our own ZAP handler (RFC 27). Without a running one, libzmq's CURVE lets everybody in."""

import logging
from collections.abc import Callable

import zmq
import zmq.asyncio
from zmq.utils import z85

from dmi_protocol.identity import PublicKey

_log = logging.getLogger("dmi.zap")
_ADDRESS = "inproc://zeromq.zap.01"
_VERSION, _SEQUENCE, _DOMAIN, _ADDRESS_OF_PEER, _IDENTITY, _MECHANISM, _KEY = range(7)

Allowed = Callable[[PublicKey], bool]
Denied = Callable[[PublicKey, str], None]
"""Called with the key that was refused and the address it came from."""


class Gatekeeper:
    """Answers the questions of one context. One bad request must not end the task, or nobody could connect again."""

    def __init__(self, context: zmq.asyncio.Context, domain: str, allowed: Allowed, denied: Denied) -> None:
        self._domain = domain.encode("ascii")
        self._allowed = allowed
        self._denied = denied
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ADDRESS)

    async def serve(self) -> None:
        """Answer until cancelled."""
        while True:
            request = await self._socket.recv_multipart()
            try:
                answer = self._answer(request)
            except Exception:  # noqa: BLE001 (a bug of ours must not lock everybody out)
                _log.exception("a question of authentication could not be answered; it is refused")
                answer = [b"1.0", request[_SEQUENCE] if len(request) > _SEQUENCE else b"", b"500", b"", b"", b""]
            await self._socket.send_multipart(answer)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        sequence = request[_SEQUENCE] if len(request) > _SEQUENCE else b""
        if len(request) != _KEY + 1 or request[_MECHANISM] != b"CURVE" or request[_DOMAIN] != self._domain:
            return [b"1.0", sequence, b"400", b"CURVE only", b"", b""]
        key = PublicKey(z85.encode(request[_KEY]).decode("ascii"))
        if self._allowed(key):
            return [b"1.0", sequence, b"200", b"", key.encode("ascii"), b""]
        self._denied(key, request[_ADDRESS_OF_PEER].decode("ascii", "replace"))
        return [b"1.0", sequence, b"400", b"unknown key", b"", b""]

    def close(self) -> None:
        """Refuse everybody from now on."""
        self._socket.close()
