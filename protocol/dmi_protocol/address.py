"""What may be dialled: ``HOST:PORT``, the host a name, an IPv4 address, or an IPv6 address in brackets."""

import re

_ADDRESS = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,15})?\]):(\d{1,5})"
)
_MOST = (1 << 16) - 1


def is_address(text: str) -> bool:
    """Can a socket be told to connect there? Whether anybody answers is another question."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and text.isascii() and int(found[1]) <= _MOST
