"""How many replicas a deployment has that follows the load."""

from functools import partial

from msgspec.structs import replace

from dmi_protocol.cluster.command import RemoveModel, SetScale, WakeDeployment
from dmi_protocol.identity import RequestId
from dmi_protocol.instant import Instant
from dmi_protocol.kinds.deployment.scaling import DOWN_MS, LOOK_MS, SLEEP_MS, UP_MS, Scaler
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import RUNNING
from dmi_protocol.messages.roles import Served
from dmi_protocol.reasons import ModelInUse, Stale
from dmi_protocol.sentences import sentence
from dmi_protocol.view import why
from tests.protocol.kinds.deployment.table import Table
from tests.protocol.models import deployment


def _said(told: list[Served], job: DeploymentJob) -> list[Served]:
    return told


class Load:
    """A deployment, and what its gateways say of it, second by second."""

    def __init__(self, least: int = 1, most: int = 3) -> None:
        self.table = Table(replace(deployment(), least=least, most=most))
        self.table.settle()
        self.scaler = Scaler()
        self.now = 0
        self.requests = 0
        self.decided: list[int] = []

    def run(self, for_ms: int, busy: float, requests: int = 1) -> int:
        """So busy for so long, with so many requests a second; gives how many replicas there are then."""
        end = self.now + for_ms
        while self.now < end:
            self.now += LOOK_MS
            self.requests += requests
            told = [Served(self.requests, 0, requests, 1.0, 1.0, busy), Served(0, 0, 0.0, 0.0, 0.0, busy / 2)]
            for command in self.scaler.propose(Instant(self.now), [self.table.job], partial(_said, told)):
                assert isinstance(command, SetScale)
                assert self.table.do(command).refusal is None
                self.decided.append(command.replicas)
                self.table.settle()
        return len(self.table.where("replica"))


def test_it_begins_with_the_fewest() -> None:
    assert Load(2).run(LOOK_MS, 1.2) == 2


def test_more_are_started_when_all_are_busy_for_a_while() -> None:
    load = Load()
    assert load.run(UP_MS, 0.95) == 1, "not at once"
    assert load.run(2 * LOOK_MS, 0.95) == 2
    assert load.run(UP_MS + 2 * LOOK_MS, 1.9) == 3
    assert load.run(10 * UP_MS, 3.0) == 3, "never more than the most"


def test_a_great_load_is_met_at_once() -> None:
    load = Load(most=10)
    load.run(UP_MS + 2 * LOOK_MS, 0.9)
    assert load.run(UP_MS + 2 * LOOK_MS, 2.0) == 4


def test_one_ends_when_fewer_would_do_for_longer() -> None:
    load = Load()
    load.run(UP_MS + 2 * LOOK_MS, 0.95)
    assert load.run(DOWN_MS - LOOK_MS, 0.3) == 2, "not yet"
    assert load.run(3 * LOOK_MS, 0.3) == 1


def test_it_does_not_swing() -> None:
    """What two replicas do at three quarters each is neither too much for two nor too little for one fewer."""
    load = Load()
    load.run(UP_MS + 2 * LOOK_MS, 0.95)
    load.decided.clear()
    load.run(10 * DOWN_MS, 0.95)
    assert load.decided == []


def test_it_sleeps_when_nobody_asks_and_wakes_when_somebody_does() -> None:
    load = Load(least=0)
    table = load.table
    assert (table.job.state, table.where("replica"), table.job.is_asleep) == (RUNNING, [], True)
    assert "asleep" in sentence(why(table.job, table.state, table.nodes))
    gateway = table.job.placed("gateway")[0][0]
    assert table.do(WakeDeployment(RequestId("wake"), gateway)).refusal is None
    assert table.do(WakeDeployment(RequestId("another"), gateway)).refusal == Stale(), "it is awake"
    table.settle()
    assert len(table.where("replica")) == 1
    assert load.run(SLEEP_MS, 0.1, requests=1) == 1
    assert load.run(SLEEP_MS + 2 * LOOK_MS, 0.0, requests=0) == 0
    assert table.job.is_asleep
    assert table.do(RemoveModel(RequestId("rm"), "m", 1)).refusal == ModelInUse("m:1", table.id), "it may wake"


def test_one_with_a_number_of_replicas_follows_nothing() -> None:
    table = Table(deployment(replicas=2))
    table.settle()
    assert Scaler().propose(Instant(5), [table.job], lambda _: []) == []
    assert table.do(SetScale(RequestId("s"), table.id, 1)).refusal == Stale()
