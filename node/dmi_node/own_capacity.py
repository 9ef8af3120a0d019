"""What this host has for jobs: as the configuration says, or all that it has."""

import os

from dmi_node.config import Config, ConfigError, size_of
from dmi_protocol.capacity import Capacity
from dmi_protocol.sizes import in_words
from dmi_wire.host_memory import total_bytes


def own_capacity(config: Config) -> Capacity:
    """Raises ``ConfigError`` where the configuration promises what is not there."""
    usable, total = len(os.sched_getaffinity(0)), total_bytes()
    cpus = usable if config.cpus is None else config.cpus
    memory = (total or 0) if config.memory is None else size_of(config.memory, "memory")
    if cpus > usable:
        raise ConfigError(f"cpus is {cpus}, and this process may use {usable}")
    if total is not None and memory > total:
        raise ConfigError(f"memory is {in_words(memory)}, and this host has {in_words(total)}")
    return Capacity(cpus, memory)
