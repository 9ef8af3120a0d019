"""What a surviving node says of a job, moment by moment, and how long a training stood still."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dmi.connection import Connection
from dmi.errors import DmiError
from dmi.job import ENDED
from dmi.mesh import Mesh
from tests.mesh.local import LocalMesh, until

_PAUSE_S = 0.005
"""Between two looks: a tighter loop would take the processor from the training."""
LAG_S = 1.0
"""A step that was finished before a fault is known everywhere by then."""


class Seen(NamedTuple):
    """A job at a moment of this process's monotonic clock, in seconds."""

    at: float
    state: str
    generation: int
    step: int | None


class Recovery(NamedTuple):
    """Seconds from a fault until the mesh said that something is lost, and until the next finished step.

    ``detected_s`` is None when nothing had to be placed again, ``recovered_s`` when no step was finished any more.
    """

    detected_s: float | None
    recovered_s: float | None


def recovery(seen: Sequence[Seen], at: float) -> Recovery:
    """What followed a fault at ``at``.

    A step that was finished before the fault may become known after it. So of the times without progress that began
    at the fault or up to a second later the longest one counts, and the step at its end is the next finished one.
    """
    before = [each for each in seen if each.at <= at]
    generation = before[-1].generation if before else 0
    lost = (
        each.at - at for each in seen if each.at > at and (each.generation > generation or each.state == "recovering")
    )
    starts, longest, end = at, 0.0, None
    for moment in progress(seen, at):
        if starts - at <= LAG_S and moment - starts > longest:
            longest, end = moment - starts, moment - at
        starts = moment
    return Recovery(next(lost, None), end)


def progress(seen: Sequence[Seen], since: float) -> list[float]:
    """When a step was shown as finished that was not before. One that is computed again after a fallback is none."""
    found = []
    most = -1
    for each in seen:
        step = -1 if each.step is None else each.step
        if each.at > since and (step > most or each.state == "succeeded"):
            found.append(each.at)
        most = max(most, step)
    return found


class Watch:
    """Asks a node for a job, over and over; a node that does not answer is asked again. ``close`` ends it."""

    def __init__(self, mesh: LocalMesh, job: str, via: int) -> None:
        self.seen: list[Seen] = []
        self._mesh, self._job, self._via = mesh, job, via
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def node(self) -> Mesh:
        """The node that is asked; like all nodes, it answers for the whole mesh."""
        return Mesh(Connection(self._mesh.node(self._via)))

    @property
    def via(self) -> int:
        """Its number."""
        return self._via

    @property
    def last(self) -> Seen:
        """What was seen last."""
        return self.seen[-1] if self.seen else Seen(time.monotonic(), "queued", 0, None)

    def look_from(self, via: int) -> None:
        """Ask another node from now on."""
        self._via = via

    def until(self, happened: Callable[[Seen], bool], seconds: float, what: str) -> Seen:
        """The first thing seen that is so. Raises ``AssertionError`` when there is none in time, or the job ended first."""

        def look() -> Seen | None:
            last = self.last
            return last if happened(last) or last.state in ENDED else None

        found = until(look, seconds, what)
        assert found is not None
        assert happened(found), f"the job {found.state} at step {found.step} before this: {what}"
        return found

    def ends(self, seconds: float) -> Seen:
        """The job's end."""
        return self.until(lambda seen: seen.state in ENDED, seconds, "the job ends")

    def role_on(self, name: str, seconds: float) -> bool:
        """Whether a node gets a role in the job before so many seconds, or the job's end, are over."""

        def look() -> str | None:
            mine = any(role["job"] == self._job and role["node"] == name for role in self.node.roles())
            return "yes" if mine else "no" if self.last.state in ENDED else None

        try:
            return until(look, seconds, f"{name} has a role") == "yes"
        except AssertionError:
            return False

    def why(self) -> str:
        """The mesh's own sentence about the job."""
        sentence: str = self.node.job(self._job).why()["sentence"]
        return sentence

    def close(self) -> None:
        """No more looking."""
        self._is_over.set()
        self._thread.join(timeout=70)

    def _run(self) -> None:
        while not self._is_over.wait(_PAUSE_S):
            try:
                found = self._look()
            except DmiError:
                continue  # it is dead, or has just come back; what is seen has a gap here
            if found is not None and found[1:] != self.last[1:]:
                self.seen.append(found)

    def _look(self) -> Seen | None:
        for job in self.node.jobs():
            if job["id"] == self._job:
                return Seen(time.monotonic(), job["state"], job["generation"], job["step"])
        return None
