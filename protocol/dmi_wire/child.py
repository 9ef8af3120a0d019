"""A role process's end of the channel to its daemon; see ``dmi_protocol/messages/roles.py`` for what is said there.

One background thread listens and another one beats while the process computes: that it is scheduled depends on nothing
that it is told. When the daemon is gone the process ends at once.
"""

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn, TypeVar

from dmi_protocol import limits
from dmi_protocol.codec import decode_struct, encode_struct
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.instant import Instant
from dmi_protocol.messages.roles import (
    Access,
    Failed,
    Fleet,
    Followers,
    FromRole,
    Launch,
    Lease,
    Moving,
    Roster,
    Slices,
    Stop,
    ToRole,
)
from dmi_wire.channel import framed, unframed

OfLaunch = TypeVar("OfLaunch", bound=Launch)

DESCRIPTOR = "DMI_ROLE_FD"
"""The environment variable that names the inherited descriptor."""

UMASK = "DMI_ROLE_UMASK"
"""The one that names, in octal digits, what a script's files are to be without: the daemon's own files are its owner's alone."""

_SET_PARENT_DEATH_SIGNAL = 1
_ORPHANED = 113
"""The exit code of a child whose daemon has died."""
_HEARD_S = 60.0
"""How long the daemon may take to read our last words: what we said before them may be large parts of a checkpoint."""


class DaemonGoneError(Exception):
    """The other end of the channel is closed."""


class Child:
    """This process as its daemon knows it. ``tell`` may be called from any thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._ear: threading.Thread | None = None
        self._code = _ORPHANED
        """With which we end when the other end is closed."""
        self._told: queue.Queue[Roster] = queue.Queue(maxsize=limits.ROSTERS)
        self._leased: queue.Queue[Slices] = queue.Queue(maxsize=limits.ROSTERS)
        self._fleets: queue.Queue[Fleet] = queue.Queue(maxsize=limits.ROSTERS)
        self.access = Access(())
        """Who may ask us, as we were told last."""
        self.followers = Followers(())
        """Who follows our training by its checkpoints, as we were told last."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Can be read when ``newest`` may have a roster to give or ``fleet`` a fleet, or ``lease`` is another one."""
        self.lease = Lease(Instant(0))
        """The last one that came."""

    @classmethod
    def inherit(cls) -> "Child":
        """The channel that the daemon left open for us. From here on the kernel ends us when the daemon dies."""
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        descriptor = int(os.environ.pop(DESCRIPTOR))
        if (umask := os.environ.pop(UMASK, None)) is not None:
            os.umask(int(umask, 8))
        os.set_inheritable(descriptor, False)  # noqa: FBT003
        return cls(socket.socket(fileno=descriptor))

    def launch(self, kind: type[OfLaunch]) -> OfLaunch:
        """The first message; waits for it."""
        first = self._receive()
        if not isinstance(first, kind):
            raise RemoteProtocolError(f"the daemon begins with {type(first).__name__} and not with a launch")
        return first

    def start(self) -> None:
        """Listen and beat from now on."""
        self._ear = threading.Thread(target=self._hear, name="role-channel", daemon=True)
        self._ear.start()
        threading.Thread(target=self._beat, name="role-beat", daemon=True).start()

    def roster(self) -> Roster:
        """The next roster. Others may fetch parts of a checkpoint for long; when nothing comes of it the daemon ends us, and
        when the daemon has ended we end, too."""
        return self._told.get()

    def newest(self) -> Roster | None:
        """The last roster that came since one was taken; None when none did. Those before it need not be known."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        found = None
        with suppress(queue.Empty):
            while True:
                found = self._told.get_nowait()
        return found

    def fleet(self) -> Fleet | None:
        """The last fleet that came since one was taken; None when none did."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        found = None
        with suppress(queue.Empty):
            while True:
                found = self._fleets.get_nowait()
        return found

    def slices(self, *, wait: bool) -> Slices | None:
        """The last slices that we were told to compute since they were taken; without ``wait`` None when there were none."""
        found = self._leased.get() if wait else None
        with suppress(queue.Empty):
            while True:
                found = self._leased.get_nowait()
        return found

    def tell(self, message: FromRole) -> None:
        """Send one message to the daemon."""
        with self._sending:
            self._channel.sendall(framed(encode_struct(message)))

    def fail(self, kind: str, text: str, *, starting: bool) -> NoReturn:
        """Say why, and end."""
        text = text.encode()[-limits.TRACEBACK_BYTES :].decode(errors="replace")
        self.tell(Failed(kind, text, starting))
        self.end(1)

    def end(self, code: int) -> NoReturn:
        """End without waiting for any thread, once the daemon has read what was said: it closes its end then. Were we gone
        while it still speaks to us, its writing would fail, and with it the reading of our last words."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._code = code
        self._sending.acquire()  # for good: nobody says anything any more
        self._channel.shutdown(socket.SHUT_WR)
        if self._ear is not None:
            self._ear.join(_HEARD_S)
        os._exit(code)

    def _hear(self) -> None:
        try:
            while True:
                self._take(self._receive())
        except (DaemonGoneError, ConnectionError):
            os._exit(self._code)

    def _beat(self) -> None:
        try:
            while True:
                self.tell(Moving())
                time.sleep(limits.ROLE_BEAT_MS / 1000)
        except ConnectionError:
            os._exit(self._code)

    def _take(self, message: ToRole) -> None:
        if isinstance(message, Stop):
            os.kill(os.getpid(), signal.SIGTERM)
        elif isinstance(message, Roster):
            if self._told.full():  # only the newest counts
                self._told.get_nowait()
            self._told.put_nowait(message)
            os.eventfd_write(self.fd, 1)
        elif isinstance(message, Slices):
            if self._leased.full():  # only the newest counts
                self._leased.get_nowait()
            self._leased.put_nowait(message)
        elif isinstance(message, Fleet):
            if self._fleets.full():  # only the newest counts
                self._fleets.get_nowait()
            self._fleets.put_nowait(message)
            os.eventfd_write(self.fd, 1)
        elif isinstance(message, Access):
            self.access = message
        elif isinstance(message, Followers):
            self.followers = message
        elif isinstance(message, Lease):
            self.lease = message
            os.eventfd_write(self.fd, 1)

    def _receive(self) -> ToRole:
        return decode_struct(unframed(self._exactly), ToRole)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._channel.recv(size - len(data))
            if not piece:
                raise DaemonGoneError
            data += piece
        return bytes(data)
