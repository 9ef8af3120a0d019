"""Sockets in this node's home. Their paths may be longer than the 108 bytes that sockets allow."""

import os
import socket
from pathlib import Path


def bound(path: Path, kind: int, mode: int) -> socket.socket:
    """A socket of this ``kind`` at ``path``, whose file has this ``mode``; what was there before is gone. Raises ``OSError``."""
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    made = socket.socket(socket.AF_UNIX, kind)
    try:
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
        path.chmod(mode)
    except OSError:
        made.close()
        raise
    finally:
        os.close(directory)
    return made
