"""What a host has for jobs, and what a job is promised of it."""

from msgspec import Struct


class Capacity(Struct, frozen=True):
    """So many whole processors, and so many bytes of memory; 0 is nothing, and asks for nothing."""

    cpus: int = 0
    memory: int = 0

    def __bool__(self) -> bool:
        return bool(self.cpus or self.memory)

    def holds(self, share: "Capacity") -> bool:
        """Is there as much as ``share`` asks for? What it does not ask for may be owed already."""
        has_cpus = not share.cpus or self.cpus >= share.cpus
        return has_cpus and (not share.memory or self.memory >= share.memory)

    def without(self, share: "Capacity") -> "Capacity":
        """What is left."""
        return Capacity(self.cpus - share.cpus, self.memory - share.memory)

    def times(self, share: "Capacity") -> int:
        """How often it holds ``share``, which asks for something."""
        asked = ((self.cpus, share.cpus), (self.memory, share.memory))
        return min(has // wants for has, wants in asked if wants)
