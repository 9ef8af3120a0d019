"""What was refused: counted by reason, and logged once for each peer."""

import logging
from collections import Counter

_log = logging.getLogger("dmi.refused")
_REMEMBERED = 1_000


class Refusals:
    """``counts`` is what ``status`` shows."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged: dict[tuple[str, str], None] = {}

    def add(self, reason: str, who: str, line: str) -> None:
        """``who`` did something that is refused for ``reason``; ``line`` is for the log, the first time."""
        self.counts[reason] += 1
        if (reason, who) not in self._logged:
            self._logged[reason, who] = None
            while len(self._logged) > _REMEMBERED:
                del self._logged[next(iter(self._logged))]
            _log.warning("refused %s: %s (%s)", who, line, reason)
