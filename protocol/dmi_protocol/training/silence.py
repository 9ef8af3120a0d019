"""Whom a role process reports because it does not hear it, so that one of the two is replaced."""

from collections.abc import Mapping

from dmi_protocol import limits
from dmi_protocol.messages.roles import Role, Unheard


class Silences:
    """Of one role process. Who stays silent is reported again each time as long as it took the first time, in case that what was
    reported was forgotten: it was only busy then, or the generation went on."""

    def __init__(self) -> None:
        self._generation = 0
        self._told: dict[tuple[Role, int], int] = {}
        """How often those who are silent were reported during this silence."""
        self._number = 0

    def look(self, generation: int, silent_ms: Mapping[tuple[Role, int], int]) -> list[Unheard]:
        """The reports that are due, from how long each peer that matters has been silent."""
        told = self._told if generation == self._generation else {}
        self._generation = generation
        times = {peer: silence // limits.PAIR_SILENT_MS for peer, silence in silent_ms.items()}
        self._told = {peer: often for peer, often in times.items() if often}
        due = [peer for peer, often in self._told.items() if often > told.get(peer, 0)]
        reports = []
        for role, index in due:
            self._number += 1
            reports.append(Unheard(generation, role, index, silent_ms[role, index], self._number))
        return reports
