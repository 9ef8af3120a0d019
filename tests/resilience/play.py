"""One run of one scenario: a new mesh, a training, a fault, and the hash of what came out."""

from random import Random

from dmi.errors import DmiError
from tests.hosts import faults
from tests.hosts.faults import Clock
from tests.hosts.hosts import WHY_NOT
from tests.mesh.local import LocalMesh
from tests.resilience.report import Outcome
from tests.resilience.scene import Scenario, Scene
from tests.resilience.training import NODES, Plan, a_mesh, expected, exported, submit
from tests.resilience.watch import Seen, Watch, recovery

START_S, END_S = 120.0, 300.0


def why_not(scenario: Scenario) -> str | None:
    """Why a scenario cannot be played here."""
    return (WHY_NOT if scenario.needs else None) or (Clock.WHY_NOT if scenario.needs == "clock" else None)


def play(key: str, scenario: Scenario, script: str, plan: Plan, seed: int) -> Outcome:
    """Once. What does not go as promised is in the outcome; what is wrong with the harness is raised."""
    with a_mesh(plan.home, scenario.disk_mib) as mesh:
        clock = _clock(mesh) if scenario.needs == "clock" else None
        mesh.up()
        job = submit(mesh, 0, script, plan, scenario.flags)
        watch = Watch(mesh, job, 0)
        scene = Scene(mesh, job, watch, Random(seed), clock)
        try:
            trouble = _suffer(scene, scenario) or _ended(watch)
            equal = trouble is None and exported(mesh, watch.via, job, plan) == expected(script, plan)
        finally:
            watch.close()
        if trouble is None and not equal:
            trouble = "**another hash**"
        recoveries = [recovery(watch.seen, at) for at in scene.strikes]
        return Outcome(key, scenario.title, script, equal, recoveries, trouble, scene.notes)


def _clock(mesh: LocalMesh) -> Clock:
    clock = Clock(mesh.home.parent)
    mesh.environments = dict.fromkeys(range(NODES), clock.environment)
    return clock


def _suffer(scene: Scene, scenario: Scenario) -> str | None:
    """Do harm once the training has got somewhere; gives what was not as it should be."""
    try:
        scene.watch.until(lambda seen: (seen.step or 0) >= 2, START_S, "the job moves")
        steps = scene.watch.node.job(scene.job).status()["steps"]
        scene.watch.until(lambda seen: _is_far(seen, steps), START_S, "a fifth of the job is done")
        faults.last(scene.chance.random())  # anywhere in a step
        scenario.act(scene)
    except (AssertionError, DmiError) as error:
        return str(error).splitlines()[0]
    return None


def _is_far(seen: Seen, steps: int) -> bool:
    return seen.state == "running" and (seen.step or 0) >= steps // 5


def _ended(watch: Watch) -> str | None:
    try:
        end = watch.ends(END_S)
        return None if end.state == "succeeded" else f"{end.state}: {watch.why()}"
    except AssertionError:
        return f"hangs at step {watch.last.step}, {watch.last.state}: {watch.why()}"
    except DmiError as error:
        return str(error)
