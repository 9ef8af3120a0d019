"""Large buffers come and go with every step; giving them back to the kernel and faulting them in again costs more than
the sums that are made in them."""

import ctypes

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's ``mallopt``."""
_LARGEST_BYTES = 32 * 1024 * 1024
"""glibc's own bound for the threshold above which each block is mapped for itself."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of up to 32 MiB for the next step; False where there is no such malloc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
