"""Which failures of the system pass by themselves: a service that is started again gets over them."""

import errno

_STAYS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EAFNOSUPPORT,
        errno.EPROTONOSUPPORT,
        errno.ENOEXEC,
    }
)
"""What only people can put right: rights, and names."""


def passes(error: OSError | MemoryError) -> bool:
    """An address that is not there yet, a port that is taken, no memory, no descriptors, a full disk, a name that cannot be
    resolved, and whatever else nobody has to put right. In doubt it passes: trying again costs little, and a host that is left
    out is found late."""
    return isinstance(error, MemoryError) or error.errno not in _STAYS
