"""Which versions may talk. The number is in every envelope; a message of another one is refused, never guessed at."""

from dmi_protocol.errors import RemoteProtocolError

PROTOCOL = 1
"""Raised by one with each change that an older peer cannot read."""
SPOKEN = frozenset({PROTOCOL})
"""What we can read. While a mesh is upgraded node by node this holds two numbers."""


def check_version(version: object) -> None:
    """Raise ``RemoteProtocolError`` unless we can read ``version``."""
    if version not in SPOKEN:
        spoken = ", ".join(map(str, sorted(SPOKEN)))
        raise RemoteProtocolError(f"protocol version {version!r} where we speak {spoken}; upgrade the older node")
