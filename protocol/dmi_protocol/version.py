"""Which versions may talk. The number is in every envelope; a message of another one is refused, never guessed at."""

from dmi_protocol.errors import RemoteProtocolError

PROTOCOL = 1
"""Raised by one with each change that an older peer cannot read."""
SPOKEN = frozenset({PROTOCOL})
"""What we can read. While a mesh is upgraded node by node this holds two numbers."""


def check_version(version: object) -> None:
    """Raise ``RemoteProtocolError`` unless we can read ``version``."""
    if type(version) is not int or version not in SPOKEN:  # a list has no hash, and True would pass for 1
        spoken = ", ".join(map(str, sorted(SPOKEN)))
        raise RemoteProtocolError(
            f"protocol version {str(version)[:40]} where we speak {spoken}; upgrade the older node"
        )
