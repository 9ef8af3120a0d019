"""One conversation with a node on this host, over its control socket."""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from dmi.errors import DmiError, NoNodeError, NoQuorumError, RefusedError, UnknownJobError, UsageError
from dmi_protocol.codec import pack, unpack
from dmi_protocol.errors import RemoteProtocolError
from dmi_wire.channel import framed, unframed

_CONNECT_S = 5.0
_ANSWER_S = 60.0
_QUIET_S = 30.0
_PAUSE_S = 0.2
_SOCKET = "control.sock"
SERVICE_HOME = Path("/var/lib/dmi-node")
"""Where the systemd unit runs its node."""
SERVICE_SOCKET = Path("/run/dmi-node") / _SOCKET
"""Where the unit's group may ask, who may not look into its home."""
Item = TypeVar("Item")
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
    return SERVICE_HOME if SERVICE_HOME.is_dir() else user_home()


def user_home() -> Path:
    """A home of the user's own, where no service runs. Raises ``UsageError`` for a user who has none."""
    try:
        return Path.home() / ".local" / "state" / "dmi-node"
    except RuntimeError:
        raise UsageError("this user has no home directory: name a folder with --home, or in DMI_HOME") from None


def homes_at(home: Path) -> list[Path]:
    """The node homes that ``home`` stands for: itself, or those below it, in the order of their names."""
    try:
        if (home / _SOCKET).exists() or not home.is_dir():
            return [home]
        below = [child for child in home.iterdir() if (child / "state.sqlite").exists()]
    except PermissionError:
        return [home]  # it says why itself
    return sorted(below, key=lambda child: (len(child.name), child.name)) or [home]


def _door(home: Path) -> Path:
    """The folder of its socket."""
    is_shut = home == SERVICE_HOME and home.is_dir() and not os.access(home, os.X_OK)
    return SERVICE_SOCKET.parent if is_shut and os.access(SERVICE_SOCKET.parent, os.X_OK) else home


class Conversation:
    """One request and what comes back. ``with`` closes it."""

    def __init__(self, home: Path) -> None:
        """Raises ``NoNodeError`` when nobody listens there."""
        self.home = home
        try:
            directory = os.open(_door(home), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            raise NoNodeError(
                f"no node has its home at {home}: start one with `dmi-node up`, or name another --home"
            ) from error
        except OSError as error:
            raise NoNodeError(
                f"the home {home} cannot be opened ({error.strerror}): name another --home, or ask as its owner"
            ) from error
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
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
        self.close()

    def close(self) -> None:
        """The end of it."""
        self._socket.close()

    def interrupt(self) -> None:
        """Wake a thread that waits in ``receive``: nothing comes any more."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was faster

    def is_quiet(self, for_s: float) -> bool:
        """Whether nothing can be read for so long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(for_s * 1000)

    def send(self, value: object) -> None:
        """Say one thing. When the node has hung up, its last word is raised: it says why."""
        try:
            self._socket.sendall(framed(pack(value)))
        except OSError as error:
            self._hear_refusal()
            raise NoNodeError(f"the node at {self.home} has gone: {error}") from error

    def _hear_refusal(self) -> None:
        try:
            self.receive(_CONNECT_S)
        except NoNodeError:
            return

    def receive(self, within_s: float = _ANSWER_S) -> dict[str, Any]:
        """The next thing that the node says; its refusals are raised."""
        self._socket.settimeout(within_s)
        try:
            found: dict[str, Any] = unpack(unframed(self._exactly))
        except TimeoutError as error:
            raise NoNodeError(f"the node at {self.home} did not answer within {within_s:g} s") from error
        except RemoteProtocolError as error:
            raise NoNodeError(f"what answers at {self.home} is no node: {error}") from error
        except OSError as error:
            raise NoNodeError(f"the node at {self.home} has gone: {error}") from error
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

    def stream(
        self, verb: str, shape: Callable[[Any], Item], resume: "Resume | None" = None, **args: Any
    ) -> "Stream[Item]":
        """One question, and items until they end, each as ``shape`` makes it. Nothing is asked before the first ``next``.

        With ``resume`` another node of the home is asked when the first one is gone: it gives what the question has besides then.
        """
        return Stream(self.open, {"verb": verb, "args": args}, shape, resume)


Resume = Callable[[], dict[str, Any]]
_AGAIN_S = 5.0
"""So long another node is looked for when one is gone."""


class Stream(Generic[Item]):
    """The items of one question. ``close`` may come from another thread, and ends a ``next`` that waits.

    A stream may be silent for as long as nothing changes; a node that is silent because it no longer moves is found by
    asking it something else, and raises ``NoNodeError``.
    """

    def __init__(
        self,
        connect: Callable[[], Conversation],
        request: dict[str, Any],
        shape: Callable[[Any], Item],
        resume: Resume | None = None,
    ) -> None:
        self._connect = connect
        self._request = request
        self._shape = shape
        self._resume = resume
        self._talk: Conversation | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        try:
            found = self._receive() if self._resume is None else self._receive_from_somebody(self._resume)
        except BaseException:
            self._finish()
            raise
        if "item" not in found:
            self._finish()
            raise StopIteration
        return self._shape(found["item"])

    def __del__(self) -> None:
        self._finish()

    def close(self) -> None:
        """No more items."""
        self._ended = True
        if self._talk is not None:
            self._talk.interrupt()

    def _receive_from_somebody(self, resume: Resume) -> dict[str, Any]:
        """The next thing, from another node of the home where the one that we asked is gone. Raises ``NoNodeError``."""
        end = time.monotonic() + _AGAIN_S
        while True:
            try:
                return self._receive()
            except NoNodeError:
                if self._talk is None and time.monotonic() > end:
                    raise
                self._leave()
                self._request = {**self._request, "args": {**self._request["args"], **resume()}}
                time.sleep(_PAUSE_S)

    def _leave(self) -> None:
        """The node that we talk to is gone."""
        if self._talk is not None:
            self._talk.close()
            self._talk = None

    def _receive(self) -> dict[str, Any]:
        if self._talk is None:
            self._talk = self._connect()
            self._talk.send(self._request)
        while not self._ended and self._talk.is_quiet(_QUIET_S):
            with Conversation(self._talk.home) as other:
                other.send({"verb": "version", "args": {}})
                other.receive()
        return {} if self._ended else self._talk.receive()

    def _finish(self) -> None:
        self._ended = True
        if self._talk is not None:
            self._talk.close()
