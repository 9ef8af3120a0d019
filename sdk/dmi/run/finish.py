"""The end of a script in a process that goes on: what plain Python does when a program is over, in its order."""

import atexit
import gc
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from dmi_protocol import limits

_FILES = (io.TextIOWrapper, io.BufferedWriter)
"""Texts write into buffers, and so are flushed before them."""


def finish(within_s: float = limits.THREADS_END_MS / 1000) -> None:
    """Wait for the script's threads, run its exit handlers, and flush its files.

    Threads are waited for ``within_s`` seconds, and those that still run are named on standard error. Handlers run in this
    thread, the last registered first; what one raises is printed, as Python does.
    """
    _wait_for_threads(within_s)
    atexit._run_exitfuncs()
    flush()
    gc.collect()  # what nobody refers to any more comes to its own end
    flush()


def end_child(code: int) -> None:
    """End a process that the script has forked, and that came to the script's end: it takes no part in what its parent does."""
    finish()
    os._exit(code)


def flush() -> None:
    """Write what waits in files that were not closed."""
    found: list[Any] = [each for each in gc.get_objects() if issubclass(type(each), _FILES)]
    for file in sorted((*found, sys.stdout, sys.stderr), key=lambda file: issubclass(type(file), io.BufferedWriter)):
        with suppress(OSError, ValueError, AttributeError):  # closed, broken, or one that only reads
            file.flush()


def _wait_for_threads(within_s: float) -> None:
    """Pools of threads end their own when they are told; all that may take time happens beside, so that we can give up."""
    waiter = threading.Thread(target=_join_all, name="finish", daemon=True)
    waiter.start()
    waiter.join(within_s)
    if waiter.is_alive():
        left = ", ".join(sorted(thread.name for thread in _threads(waiter))) or "a pool of threads"
        print(
            f"the script's threads still run {within_s:g} s after its end, and are left: {left}",
            file=sys.stderr,
            flush=True,
        )


def _join_all() -> None:
    handlers: Iterable[Callable[[], object]] = getattr(threading, "_threading_atexits", ())
    for handler in reversed(list(handlers)):
        handler()
    while threads := _threads(threading.current_thread()):
        for thread in threads:
            thread.join()


def _threads(but: threading.Thread) -> list[threading.Thread]:
    """Those that Python would wait for."""
    mine = {threading.main_thread(), but}
    return [thread for thread in threading.enumerate() if thread not in mine and not thread.daemon]
