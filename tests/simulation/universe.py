"""One seed: begin, burn, heal, and show that life goes on."""

import gc
import traceback
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from dmi_protocol.cluster.command import BatchSpec, Cancel, Submit, TrainingSpec
from dmi_protocol.errors import ProtocolError
from dmi_protocol.identity import JobId, RequestId
from dmi_protocol.kinds.batch.state import BatchJob
from dmi_protocol.kinds.job import ENDED, FAILED
from dmi_protocol.kinds.training.state import TrainingJob
from dmi_protocol.model import ModelRef
from dmi_protocol.reasons import CrashedOften, FilesLost
from tests.simulation.faults import Faults
from tests.simulation.trouble import Violation, demand
from tests.simulation.workload import Workload
from tests.simulation.world import BUNDLE, World

_BURNS_MS = 42_000
_ENDS_MS = 60_000
_PROGRESS_MS = 30_000
_ALL_JOBS_MS = 4 * _PROGRESS_MS
_LOOK_MS = 250
REQUIRED = (
    "elections",
    "truncations",
    "torn writes",
    "snapshots",
    "voter changes",
    "refutations",
    "refused writes",
    "retired",
    "slices computed twice",
    "requests answered",
    "requests refused",
    "requests answered by a later version",
    "batches passed on",
    "shares promised",
    "checkpoints published",
    "jobs that wait for room",
    "rounds of the lead",
    "processes busy",
    "pairs parted",
    "adapters raised",
)


class Report(Struct):
    """What a universe was like. ``checker`` is empty when nothing was violated."""

    seed: int
    peers: int = 0
    virtual_ms: int = 0
    faults: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    trace: int = 0
    checker: str = ""
    what: str = ""


class Universe:
    """Everything in it is a function of ``seed``."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(seed, founders=5)
        self.workload = Workload(self.world, _BURNS_MS)
        self.faults = Faults(self.world, self.workload)
        self.progress_ms = 0

    def live(self) -> None:
        """From the beginning to the end; raises ``Violation``."""
        clock = self.world.clock
        self.workload.begin()
        self.faults.plan(20 + int(12 * clock.random.random()), 800, _BURNS_MS)
        clock.run(_BURNS_MS)
        self.faults.over()
        self._demand_progress()
        clock.run(max(clock.now, _ENDS_MS))
        self.world.answers.at_end(clock.now)
        self.world.agreement.expulsions.at_end()
        for job in self.world.agreement.state.jobs.values():
            is_fair = job.state != FAILED or isinstance(job.reason, CrashedOften | FilesLost)
            demand("recovery", is_fair, f"{job.id} failed: {job.reason}")

    def _demand_progress(self) -> None:
        """A leader, a command committed everywhere, all members alive, every job ended; then a new one of each kind, to its
        end."""
        self.world.ask(self.world.nodes["n1"], Cancel(RequestId("word"), JobId("nothing")), _PROGRESS_MS)
        self._wait_for(self.missing)
        first = self.world.nodes["n0"]
        spec = TrainingSpec("last", "train.py", ("4",), workers=3, servers=2, leaves=4)
        first.blobs[BUNDLE] = {}
        self.world.ask(first, Submit(RequestId("last"), spec, BUNDLE, (first.me.node,)), _PROGRESS_MS)
        self._wait_for(self._add_model)
        model = ModelRef("last:1", self.world.agreement.state.models["last"][1].content)
        batch = BatchSpec("last", model, inputs=24, slice_inputs=2)
        self.world.ask(first, Submit(RequestId("last-batch"), batch, BUNDLE, (first.me.node,)), _PROGRESS_MS)
        self.workload.serve(first, self.world.agreement.state.models["last"][1], shared=False)
        answered = self.world.counters["requests answered"]
        self._wait_for(self.unfinished)
        self._wait_for(lambda: "" if self.world.counters["requests answered"] > answered else "nobody answers requests")

    def _add_model(self) -> str:
        """As people do who are told that it did not work: again."""
        if "last" in self.world.agreement.state.models:
            return ""
        self.workload.add_model(self.world.nodes["n0"], "last")
        return "a model is not added"

    def _wait_for(self, missing: Callable[[], str]) -> None:
        """Jobs wait for the room of others, and one after another they take longer: while they get on nothing is amiss."""
        clock, begun = self.world.clock, self.world.clock.now
        moved_at, far = begun, 0
        while what := missing():
            if (now_far := self._how_far()) > far:
                moved_at, far = clock.now, now_far
            is_in_time = clock.now < moved_at + _PROGRESS_MS and clock.now < begun + _ALL_JOBS_MS
            demand("progress", is_in_time, f"{what}, {clock.now - begun} ms after all has healed")
            clock.run(clock.now + _LOOK_MS)
        self.progress_ms += clock.now - begun

    def _how_far(self) -> int:
        """Jobs that have ended, steps that are kept, slices that have a result: it grows, or nothing moves."""
        jobs = self.world.agreement.state.jobs.values()
        kept = [job.checkpoint.step for job in jobs if isinstance(job, TrainingJob) and job.checkpoint is not None]
        return (
            sum(job.state in ENDED for job in jobs)
            + sum(kept)
            + sum(len(job.results) for job in jobs if isinstance(job, BatchJob))
        )

    def missing(self) -> str:
        """What a healthy mesh would have and this one has not; empty when it has all."""
        state = self.world.agreement.state
        members = [node for node in self.world.nodes.values() if node.me.node in state.members]
        peers = [node.peer for node in members if node.peer is not None]
        if not any(peer.raft.is_ready for peer in peers):
            return "no leader"
        for peer in peers:
            if peer.state is None or peer.state.applied != self.world.agreement.commit:
                return f"{peer.me.name} is behind"
            away = [other.name for other in state.members.values() if peer.standing(other.node) != "alive"]
            known = [name for name in away if name in self.world.nodes]
            if known:
                return f"{peer.me.name} does not see {known}"
        outside = [node.name for node in self.world.up() if node.me.node not in state.members]
        if outside:
            return f"{outside} were expelled, and run on"
        going_on = self.workload.unfinished()
        if going_on:
            return f"{going_on} have not ended"
        return "" if "word" in state.requests else "a command is not committed"

    def unfinished(self) -> str:
        """What the last jobs still lack."""
        jobs = [job for job in self.world.agreement.state.jobs.values() if job.spec.name == "last"]
        if len(jobs) < 3:
            return "the last jobs are not submitted"
        unfinished = [
            f"{job.id} is {job.state}: {job.reason}" for job in jobs if job.state not in {"succeeded", "running"}
        ]
        return ", ".join(unfinished)

    def report(self) -> Report:
        """What has happened so far."""
        nodes = self.world.nodes.values()
        counters = Counter(self.world.counters)
        counters["truncations"] += sum(node.disk.truncations for node in nodes)
        counters["snapshots"] += sum(node.disk.snapshots for node in nodes)
        counters["refused writes"] += sum(node.refused for node in nodes)
        counters["torn writes"] += sum(node.torn for node in nodes)
        living = sum(node.peer.swim.refutations for node in nodes if node.peer is not None)
        counters["refutations"] += living + sum(node.refutations for node in nodes)
        counters["messages lost"] += self.world.network.lost
        counters["messages repeated"] += self.world.network.repeated
        for job in self.world.agreement.state.jobs.values():
            counters[f"jobs {job.state}"] += 1
            counters["slices"] += len(job.results) if isinstance(job, BatchJob) else 0
            counters["generations"] += job.generation
        clock = self.world.clock
        return Report(self.seed, len(nodes), clock.now, self.faults.happened, counters, clock.trace)


_CRASHES = (ProtocolError, LookupError, ValueError, TypeError, AttributeError)


def run(seed: int) -> Report:
    """Live through one universe. What it raises is in the report."""
    universe = Universe(seed)
    checker = what = ""
    gc.collect()
    gc.disable()  # a universe makes many small things and hardly a circle
    try:
        universe.live()
    except Violation as violation:
        checker, what = violation.checker, violation.what
    except AssertionError as error:
        checker, what = "invariants", f"{error}\n{traceback.format_exc()}"
    except _CRASHES as error:
        checker, what = "crash", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    finally:
        gc.enable()
    report = universe.report()
    report.checker, report.what = checker, what
    return report
