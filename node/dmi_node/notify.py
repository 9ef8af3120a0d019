"""Tell systemd how we are (sd_notify): one datagram to the socket that it names."""

import os
import socket


class Notifier:
    """Does nothing when systemd did not start us."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        environment = dict(os.environ) if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        own = environment.get("WATCHDOG_PID") in {None, str(os.getpid())}
        self.watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 2e6 if own and self._address else 0.0
        """How often to say that we live: half of what systemd allows. 0.0 when it does not ask."""

    def ready(self) -> None:
        """We serve."""
        self._say("READY=1")

    def status(self, line: str) -> None:
        """One line for ``systemctl status``."""
        self._say(f"STATUS={line}")

    def alive(self) -> None:
        """The loop turns."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """We end in good order."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
            try:
                door.sendto(text.encode(), self._address)
            except OSError:
                self._address = ""
