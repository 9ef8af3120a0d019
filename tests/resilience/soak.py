"""``python -m tests.resilience.soak --minutes 30``: trainings on five nodes, and every few seconds something is killed.

A daemon, a worker or a server, and the daemons that are down come back. Each job must end with the hash of the plain
run, and the ledgers must have every leaf of every step. What is killed when follows from the seed, and from how fast
the machine is.
"""

import argparse
import itertools
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

from dmi.errors import DmiError
from dmi.job import ENDED
from tests.hosts import faults
from tests.mesh.local import LocalMesh, until
from tests.resilience import ledgers
from tests.resilience.scene import Scene
from tests.resilience.training import LEAVES, Plan, a_mesh, expected, exported, submit
from tests.resilience.watch import Watch

STUCK_S = 180.0
"""A job that finishes no step for so long hangs."""
DOWN_AT_ONCE = 2
_EVERY_S, _DOWN_S = (2.0, 6.0), (1.0, 8.0)
_WORST = 5


class Soak:
    """One mesh, job after job. ``failures`` has a line for everything that was not as promised."""

    def __init__(self, mesh: LocalMesh, plan: Plan, chance: Random, seconds: float) -> None:
        self._mesh, self._plan, self._chance = mesh, plan, chance
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        self._down: dict[int, float] = {}
        self.kills: Counter[str] = Counter()
        self.jobs = 0
        self.failures: list[str] = []

    @property
    def is_over(self) -> bool:
        """No more jobs, and no more kills."""
        return time.monotonic() >= self._end

    def train(self, script: str) -> None:
        """One job from its beginning to its end."""
        via = self._one_that_answers()
        job = submit(self._mesh, via, script, self._plan)
        watch = Watch(self._mesh, job, via)
        scene = Scene(self._mesh, job, watch, self._chance, None)
        try:
            self._disturb(scene)
            self._raise_all()
            self._judge(scene, script)
        except (AssertionError, DmiError) as error:
            self._fail(f"{job}: {str(error).splitlines()[0]}")
        finally:
            watch.close()

    def _disturb(self, scene: Scene) -> None:
        """Kill something now and then until the job has ended. Each blow falls on a job that has moved since the last."""
        scene.strike()
        pause = self._chance.uniform(*_EVERY_S)
        while scene.watch.last.state not in ENDED:
            self._raise_due()
            if scene.moves_again() and scene.since_strike() >= pause and not self.is_over:
                self._kill(scene)
                pause = self._chance.uniform(*_EVERY_S)
            elif time.monotonic() - scene.moved_at() > STUCK_S:
                raise AssertionError(f"no step for {STUCK_S:.0f} s: {scene.watch.why()}")
            faults.last(0.02)

    def _kill(self, scene: Scene) -> None:
        what = self._chance.choice(["worker", "server", "daemon"])
        if what == "daemon":
            self._kill_daemon(scene)
            return
        running = faults.roles(scene.watch.node, scene.job, what)
        if not running:
            return  # it has just been placed anew
        victim = self._chance.choice(list(running))
        scene.strike()
        if faults.kill(victim["pid"]):
            self._say(scene, what, f"{what} {victim['pid']} on {victim['node']}")

    def _kill_daemon(self, scene: Scene) -> None:
        up = [index for index in range(self._mesh.size) if index not in self._down]
        if len(self._down) >= DOWN_AT_ONCE:
            return
        index = self._chance.choice(up)
        scene.look_from_outside(index, *self._down)
        scene.strike()
        self._mesh.kill(index)
        self._down[index] = time.monotonic() + self._chance.uniform(*_DOWN_S)
        self._say(scene, "daemon", f"daemon of n{index}")

    def _raise_due(self) -> None:
        for index in [index for index, due in self._down.items() if due <= time.monotonic()]:
            del self._down[index]
            self._mesh.start(index)
            print(f"{self._elapsed()}  started n{index}", flush=True)

    def _raise_all(self) -> None:
        self._down = dict.fromkeys(self._down, 0.0)
        self._raise_due()
        for index in range(self._mesh.size):
            until(partial(faults.is_answering, self._mesh, index), 60, f"n{index} is back")

    def _judge(self, scene: Scene, script: str) -> None:
        self.jobs += 1
        end = scene.watch.last
        if end.state != "succeeded" or end.step is None:
            self._fail(f"{scene.job} {end.state}: {scene.watch.why()}")
            return
        found = ledgers.account(ledgers.read(self._mesh.home, scene.job), end.step, LEAVES)
        for sentence in found.wrong[:_WORST]:
            self._fail(f"{scene.job}: {sentence}")
        same = exported(self._mesh, scene.watch.via, scene.job, self._plan) == expected(script, self._plan)
        if not same:
            self._fail(f"{scene.job}: another hash than the plain run's")
        hashes = "the plain run's hash" if same else "ANOTHER HASH"
        said = f"{found.steps} steps, {found.again} leaves computed again, {len(found.wrong)} wrong"
        print(f"{self._elapsed()}  {scene.job} succeeded in generation {end.generation}: {hashes}, {said}", flush=True)

    def _one_that_answers(self) -> int:
        def look() -> list[int]:
            return [index for index in range(self._mesh.size) if faults.is_answering(self._mesh, index)]

        return until(look, 60, "a node answers and has a quorum")[0]

    def _say(self, scene: Scene, what: str, line: str) -> None:
        self.kills[what] += 1
        print(f"{self._elapsed()}  killed the {line}; {scene.job} stood at step {scene.watch.last.step}", flush=True)

    def _fail(self, line: str) -> None:
        self.failures.append(line)
        print(f"{self._elapsed()}  FAILED {line}", flush=True)

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._begin:7.1f} s"


def main() -> int:
    """Print what is done to the mesh and what comes out; 1 when that is not the plain run's bits."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="for so long something is killed")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--epochs", type=int, default=40, help="of each training")
    parser.add_argument("--backups", type=int, help="backups of each shard, where not the product's default")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dmi-soak-") as directory:
        plan = Plan(Path(directory), options.epochs, options.backups)
        with a_mesh(plan.home, {}) as mesh:
            mesh.up()
            soak = Soak(mesh, plan, Random(options.seed), 60 * options.minutes)
            for script in itertools.cycle(("digits", "transformer")):
                if soak.is_over:
                    break
                soak.train(script)
    kills = ", ".join(f"{number} of a {what}" for what, number in sorted(soak.kills.items())) or "none"
    print(f"seed {options.seed}: {soak.jobs} jobs, kills: {kills}, {len(soak.failures)} failures")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
