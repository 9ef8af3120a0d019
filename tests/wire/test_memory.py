"""Freed buffers stay with the process."""

import subprocess
import sys

SCRIPT = """
import ctypes, resource
from dmi_wire.memory import keep_freed_memory
if KEEP:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def touch():
    blocks = [libc.malloc(8 << 20) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keep: bool) -> int:
    """Page faults of five rounds over the same four buffers of 8 MiB."""
    program = SCRIPT.replace("KEEP", str(keep))
    return int(subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True).stdout)


def test_buffers_are_faulted_in_once() -> None:
    assert faults(keep=True) * 10 < faults(keep=False)
