"""Which processors of this host who may use: pure."""

from collections import Counter
from collections.abc import Iterable


class Cores:
    """``pool`` are all that there are, by number. Who is promised some has them for itself, as long as there are enough: when
    somebody else's are given back, those that two had to share are parted."""

    def __init__(self, pool: Iterable[int]) -> None:
        self._pool = sorted(pool)
        self._held: dict[str, set[int]] = {}

    @property
    def is_promised(self) -> bool:
        """Is anything held?"""
        return bool(self._held)

    @property
    def left(self) -> frozenset[int]:
        """What nobody was promised."""
        return frozenset(self._pool) - frozenset(self._owners())

    def take(self, unit: str, count: int) -> None:
        """``unit`` has so many from now on, those that the fewest others have: of those who end others may still be there."""
        owners = self._owners()
        chosen = sorted(self._pool, key=lambda core: (owners[core], core))[:count]
        self._held.setdefault(unit, set(chosen))

    def give_back(self, unit: str) -> None:
        """It has none any more."""
        self._held.pop(unit, None)
        for cores in self._held.values():
            for core in sorted(cores):
                owners = self._owners()
                free = next((other for other in self._pool if not owners[other]), None)
                if owners[core] > 1 and free is not None:
                    cores.remove(core)
                    cores.add(free)

    def of(self, units: Iterable[str]) -> frozenset[int]:
        """All that these have."""
        return frozenset(core for unit in units for core in self._held.get(unit, ()))

    def _owners(self) -> "Counter[int]":
        return Counter(core for cores in self._held.values() for core in cores)
