"""One conversation with a node on this host, over its control socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmi.errors import DmiError, NoNodeError, NoQuorumError, RefusedError, UnknownJobError, UsageError
from dmi_protocol import limits
from dmi_protocol.codec import pack, unpack
from dmi_protocol.errors import RemoteProtocolError

_LENGTH_BYTES = 4
_CONNECT_S = 5.0
_ANSWER_S = 60.0
_SOCKET = "control.sock"
_ERRORS: dict[str, type[DmiError]] = {
    "unknown": UnknownJobError,
    "refused": RefusedError,
    "usage": UsageError,
    "no-quorum": NoQuorumError,
}


def default_home() -> Path:
    """``DMI_HOME``, or the service's home, or one of the user's own."""
    named = os.environ.get("DMI_HOME")
    if named:
        return Path(named)
    service = Path("/var/lib/dmi-node")
    return service if service.is_dir() else Path.home() / ".local" / "state" / "dmi-node"


def homes_at(home: Path) -> list[Path]:
    """The node homes that ``home`` stands for: itself, or those below it, in the order of their names."""
    if (home / _SOCKET).exists() or not home.is_dir():
        return [home]
    below = [child for child in home.iterdir() if (child / "state.sqlite").exists()]
    return sorted(below, key=lambda child: (len(child.name), child.name)) or [home]


class Conversation:
    """One request and what comes back. ``with`` closes it."""

    def __init__(self, home: Path) -> None:
        """Raises ``NoNodeError`` when nobody listens there."""
        self._home = home
        try:
            directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise NoNodeError(
                f"no node has its home at {home}: start one with `dmi-node up`, or name another --home"
            ) from error
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(_CONNECT_S)
            self._socket.connect(f"/proc/self/fd/{directory}/{_SOCKET}")
        except OSError as error:
            self._socket.close()
            raise NoNodeError(f"no node answers at {home} ({error.strerror}): is it running?") from error
        finally:
            os.close(directory)

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, value: object) -> None:
        """Say one thing."""
        body = pack(value)
        try:
            self._socket.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
        except OSError as error:
            raise NoNodeError(f"the node at {self._home} has gone: {error}") from error

    def receive(self, within_s: float | None = _ANSWER_S) -> dict[str, Any]:
        """The next thing that the node says; its refusals are raised."""
        self._socket.settimeout(within_s)
        try:
            length = int.from_bytes(self._exactly(_LENGTH_BYTES), "big")
            if length > limits.MESSAGE_BYTES:
                raise NoNodeError(f"what answers at {self._home} is no node")
            found: dict[str, Any] = unpack(self._exactly(length))
        except TimeoutError as error:
            raise NoNodeError(f"the node at {self._home} did not answer within {within_s:g} s") from error
        except (OSError, RemoteProtocolError) as error:
            raise NoNodeError(f"the node at {self._home} has gone: {error}") from error
        if "error" in found:
            raise _ERRORS.get(found["error"]["kind"], DmiError)(found["error"]["line"])
        return found

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ConnectionError("it closed the connection")
            data += piece
        return bytes(data)


class Connection:
    """Finds the node to talk to; each request is a conversation of its own."""

    def __init__(self, home: str | Path | None = None) -> None:
        self._homes = homes_at(Path(home) if home is not None else default_home())

    def open(self) -> Conversation:
        """A conversation with the first node that answers. Raises ``NoNodeError``."""
        last: NoNodeError | None = None
        for home in self._homes:
            try:
                return Conversation(home)
            except NoNodeError as error:
                last = last or error
        assert last is not None
        raise last

    def ask(self, verb: str, **args: Any) -> Any:
        """One question, one answer."""
        with self.open() as talk:
            talk.send({"verb": verb, "args": args})
            return talk.receive()["ok"]

    def stream(self, verb: str, **args: Any) -> Iterator[Any]:
        """One question, and items until they end."""
        with self.open() as talk:
            talk.send({"verb": verb, "args": args})
            while "item" in (found := talk.receive(None)):
                yield found["item"]
