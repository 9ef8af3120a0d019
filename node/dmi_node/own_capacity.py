"""What this host has for jobs: as the configuration says, or all that it has."""

import logging
import os
from pathlib import Path

from dmi_node.config import Config, ConfigError, size_of
from dmi_node.supervision.sessions import memory_of
from dmi_protocol.capacity import Capacity
from dmi_protocol.sizes import in_words
from dmi_wire.host_memory import total_bytes

_logger = logging.getLogger("dmi.node")


def own_capacity(config: Config) -> Capacity:
    """What could not be kept is not promised. Raises ``ConfigError`` where the configuration promises it."""
    return Capacity(_cpus(config), _memory(config))


def _cpus(config: Config) -> int:
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, usable)
    except OSError:
        if config.cpus:
            raise ConfigError(f"cpus is {config.cpus}, and {_NOT_ALLOWED}") from None
        _logger.warning("no processors are promised to jobs: %s", _NOT_ALLOWED)
        return 0
    most = min(len(usable), container_cpus() or len(usable))
    if config.cpus is not None and config.cpus > most:
        raise ConfigError(f"cpus is {config.cpus}, and this process may use {most}")
    return most if config.cpus is None else config.cpus


_NOT_ALLOWED = "this process may not say where others run (the system call sched_setaffinity)"


def container_cpus(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many whole processors' time a container may use, as the second or the first version of control groups says it; None
    where it is not bounded."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        except OSError:
            return None
    return max(1, int(quota) // int(period)) if quota.strip().isdecimal() and int(period) else None


def _memory(config: Config) -> int:
    total = total_bytes()
    wanted = None if config.memory is None else size_of(config.memory, "memory")
    if total is None or not memory_of(os.getpid()):
        if wanted:
            raise ConfigError(f"memory is {in_words(wanted)}, and {_NOT_SEEN}")
        _logger.warning("no memory is promised to jobs: %s", _NOT_SEEN)
        return 0
    if wanted is not None and wanted > total:
        raise ConfigError(f"memory is {in_words(wanted)}, and this host has {in_words(total)}")
    return total if wanted is None else wanted


_NOT_SEEN = "what processes have of it cannot be seen (/proc/meminfo, /proc/PID/smaps_rollup)"
