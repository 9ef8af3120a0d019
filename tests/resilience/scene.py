"""A training on a mesh, with somebody who watches it: where a scenario is played."""

import time
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from dmi.connection import Connection
from dmi.mesh import Mesh
from tests.hosts import faults
from tests.hosts.faults import Clock, Disk
from tests.hosts.hosts import Hosts
from tests.mesh.local import LocalMesh, until
from tests.resilience.watch import LAG_S, Watch, progress


class Scene:
    """What a scenario may touch. It calls ``strike`` in the moment of each fault, and ``note`` for the table's remarks."""

    def __init__(self, mesh: LocalMesh, job: str, watch: Watch, chance: Random, clock: Clock | None) -> None:
        self.mesh, self.job, self.watch, self.chance, self.clock = mesh, job, watch, chance, clock
        self.strikes: list[float] = []
        self.notes: list[str] = []

    @property
    def hosts(self) -> Hosts:
        """The mesh, where a scenario needs a network that can be broken."""
        assert isinstance(self.mesh, Hosts)
        return self.mesh

    def disk(self, index: int) -> Disk:
        """The small disk of a node."""
        return Disk(self.mesh.node(index))

    def strike(self) -> None:
        """Now. Recovery is measured from here."""
        self.strikes.append(time.monotonic())

    def since_strike(self) -> float:
        """Seconds since the last fault."""
        return time.monotonic() - self.strikes[-1]

    def moves_again(self) -> bool:
        """Whether a step was finished that cannot have been finished before the last fault."""
        return bool(progress(self.watch.seen, self.strikes[-1] + LAG_S))

    def moved_at(self) -> float:
        """When the last step was finished, or the first fault was."""
        return max([self.strikes[0], *progress(self.watch.seen, self.strikes[0])[-1:]])

    def note(self, text: str) -> None:
        """Say something in the table."""
        self.notes.append(text)

    def at(self, index: int) -> Mesh:
        """A node, to ask."""
        return Mesh(Connection(self.mesh.node(index)))

    def place(self, role: dict[str, Any]) -> int:
        """The number of the node that plays a role."""
        return faults.place(self.mesh, role["node"])

    def pick(self, role: str) -> dict[str, Any]:
        """One of the job's processes of this role; any is as good as another."""
        return self.chance.choice(list(faults.roles(self.watch.node, self.job, role)))

    def playing(self) -> set[int]:
        """The nodes with a role in the job."""
        return {self.place(role) for role in self.watch.node.roles() if role["job"] == self.job}

    def coordinator(self) -> int:
        """The number of the node that leads."""
        name = until(lambda: self.watch.node.status()["coordinator"], 20, "somebody leads")
        return faults.place(self.mesh, name)

    def look_from_outside(self, *victims: int) -> None:
        """Watch from a node that will live."""
        self.watch.look_from(next(index for index in range(self.mesh.size) if index not in victims))

    def has_quorum(self, index: int) -> bool:
        """Whether a node says that it has one. It is asked, so it must be alive."""
        return bool(self.at(index).status()["quorum"])

    def is_quiet(self, index: int) -> bool:
        """Whether a host sends next to nothing for a twentieth of a second."""
        before = self.hosts.sent_bytes(index)
        faults.last(0.05)
        return self.hosts.sent_bytes(index) - before < 20_000


class Scenario(NamedTuple):
    """``needs`` is a word of ``NEEDS``; ``flags`` are for ``submit``; ``script`` replaces the scripts of the table."""

    title: str
    act: Callable[[Scene], None]
    needs: str | None = None
    flags: tuple[str, ...] = ()
    script: str | None = None
    disk_mib: dict[int, int] = {}  # noqa: RUF012


NEEDS = {"hosts", "clock"}
"""``hosts``: a network of one's own, so root. ``clock``: a C compiler, too."""
