"""``dmi.init``: the process is made deterministic, and a run begins in it."""

import atexit
import multiprocessing
import os
import sys

import torch

from dmi.errors import NotYetError, UsageError
from dmi.run.exchange import Exchange, provided
from dmi.run.plain import PlainExchange
from dmi.run.run import Run
from dmi_tensor.random_streams import sow


def init(
    seed: int = 0,
    leaves: int | None = None,
    threads: int | None = None,
    *,
    consistency: str = "bsp",
    exchange: str = "servers",
    codec: str = "none",
) -> Run:
    """Begin a run: call it before the model is built.

    Seeds torch, numpy and random; sets torch's threads (default 1) and deterministic algorithms; fixes the number of
    leaves of each step, a power of two (default 8). Inside a job the submission may have fixed leaves and threads:
    then they must agree. Raises ``UsageError``, and ``NotYetError`` for what is designed and not built.
    """
    for name, value, only in (
        ("consistency", consistency, "bsp"),
        ("exchange", exchange, "servers"),
        ("codec", codec, "none"),
    ):
        if value != only:
            raise NotYetError(f"{name}={value!r} is not built yet; leave it out, or pass {only!r}")
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            "a child process imports the script, and would train it again: put what starts processes, and the training, below "
            '`if __name__ == "__main__":`'
        )
    joined = provided()
    if joined is not None and _latest and _latest[0].belongs_to(joined):
        raise UsageError(
            "dmi.init was called a second time: a job is one training, and a second one would have no job; submit the script "
            "once for each, with its arguments (dmi-node submit train.py -- --fold 1)"
        )
    found: Exchange = PlainExchange() if joined is None else joined
    leaves = _agreed("leaves", leaves, found.leaves, 8)
    if leaves < 1 or leaves & (leaves - 1):
        raise UsageError(f"leaves must be a power of two, not {leaves}")
    torch.set_num_threads(_agreed("threads", threads, found.threads, 1))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 (torch's signature)
    sow(seed)
    run = Run(found, seed, leaves)
    _remember(run)
    return run


_latest: list[Run] = []
"""The run of this process; a notebook may begin another one."""
_process: list[int] = []
"""The process that it was begun in."""


def latest() -> Run | None:
    """The run that ``init`` made last in this process."""
    return _latest[0] if _latest else None


def _remember(run: Run) -> None:
    if not _latest:
        atexit.register(_at_exit)
    _latest[:], _process[:] = [run], [os.getpid()]


def _at_exit() -> None:
    """A plain run writes the weights that ``DMI_EXPORT`` asks for, unless its script ended with an exception."""
    path = os.environ.get("DMI_EXPORT")
    run = latest()
    if _process != [os.getpid()]:
        return  # a child that the script has forked
    if path and run is not None and provided() is None and getattr(sys, "last_value", None) is None:
        run.export(path)


def _agreed(name: str, here: int | None, there: int | None, default: int) -> int:
    if here is not None and there is not None and here != there:
        raise UsageError(f"the script says {name}={here} and the submission {name}={there}; leave one of them out")
    return here if here is not None else there if there is not None else default
