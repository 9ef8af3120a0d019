"""Whoever comes while the training goes on comes in where the lead is, and holds nobody up for ever."""

from dmi_protocol.training import exchange as x
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Subtree
from tests.protocol.training.test_shard import FIELDS, ready
from tests.protocol.training.world import NOW

GUEST = 2


def with_joiner() -> Shard:
    """Two workers train; a third one is called."""
    shard = ready()
    shard.step(NOW, x.Rostered(4, (0, 1, GUEST), 0, joiners=(GUEST,)))
    return shard


def begin(shard: Shard, step: int, *workers: int) -> list[x.ShardEffect]:
    """The lead keeps what a joiner has to know."""
    made: list[x.ShardEffect] = []
    for worker in workers:
        extra = b"kept-%d" % step if worker == 0 else None
        made += shard.step(NOW, x.Began(worker, step, (1, 1), b"lr", extra))
    return made


def contribute(shard: Shard, step: int) -> list[x.ShardEffect]:
    return shard.step(NOW, x.Contributed(0, step, 0, Subtree(0, 2), Handle(100 + step)))


def greet(shard: Shard) -> list[x.ShardEffect]:
    return shard.step(NOW, x.Greeted(GUEST, FIELDS, b"model"))


def test_a_joiner_that_waits_comes_in_with_the_next_step_of_the_lead() -> None:
    shard = with_joiner()
    assert greet(shard) == []
    assert x.WelcomeWorker(GUEST, 0, b"kept-0") in begin(shard, 0, 0)


def test_a_joiner_that_greets_late_comes_in_at_the_step_in_flight() -> None:
    """Another shard has let it in already and waits for it, it for us, and the lead for that shard: a dam."""
    shard = with_joiner()
    begin(shard, 0, 0, 1)
    assert greet(shard) == [x.WelcomeWorker(GUEST, 0, b"kept-0")]


def test_a_joiner_that_greets_when_this_shard_is_further_comes_in_at_the_step_before() -> None:
    shard = with_joiner()
    begin(shard, 0, 0, 1)
    shown = contribute(shard, 0)
    assert [effect for effect in shown if isinstance(effect, x.ShowBucket)]
    assert shard.current == 1
    assert greet(shard) == [x.WelcomeWorker(GUEST, 0, b"kept-0")], "its version is readable still"
    assert shard.step(NOW, x.Pulled(GUEST, 0, (0,))) == [x.ShowBucket(0, 0, (GUEST,))]
    begin(shard, 1, 0, 1)
    contribute(shard, 1)
    assert shard.current == 1, "the joiner has not begun: what it reads must not be overwritten"
    shard.step(NOW, x.Began(GUEST, 0, (1, 1), b"lr"))
    assert shard.current == 2


def test_once_the_step_is_over_everywhere_a_late_joiner_waits_for_the_lead() -> None:
    shard = with_joiner()
    begin(shard, 0, 0, 1)
    contribute(shard, 0)
    shard.step(NOW, x.Began(1, 1, (1, 1), b"lr"))
    shard.step(NOW, x.Contributed(1, 1, 0, Subtree(1, 1), Handle(200)))
    assert greet(shard) == [], "somebody has contributed to step 1, so no shard waits in step 0"
    assert x.WelcomeWorker(GUEST, 1, b"kept-1") in begin(shard, 1, 0)


def test_a_joiner_that_greets_again_has_not_heard_its_welcome() -> None:
    shard = with_joiner()
    begin(shard, 0, 0, 1)
    assert greet(shard) == greet(shard) == [x.WelcomeWorker(GUEST, 0, b"kept-0")]


def test_a_lead_that_greets_again_is_told_what_it_has_to_bring() -> None:
    shard = Shard(x.Rostered(1, (0, 1), 0), 0)
    for worker in (0, 1):
        shard.step(NOW, x.Greeted(worker, FIELDS, b"model"))
    shard.step(NOW, x.Opened((0, 1), (4,), 2, clips=False, shards=(0,)))
    shard.step(NOW, x.Initialized(0, 1))
    assert shard.step(NOW, x.Greeted(1, FIELDS, b"model")) == [], "only the lead brings anything"
    assert shard.step(NOW, x.Greeted(0, FIELDS, b"model")) == [x.TellLacking(0, (0, 4))]


def test_a_shard_that_lacks_the_norms_of_another_asks_and_one_that_is_asked_answers() -> None:
    shard = ready(workers=1, clips=True)
    shard.step(NOW, x.Opened((0,), (), 2, clips=True, shards=(0, 1)))
    shard.step(NOW, x.Initialized(0, 0))
    shard.step(NOW, x.Began(0, 0, (1, 1), b"lr"))
    shard.step(NOW, x.Contributed(0, 0, 0, Subtree(0, 2), Handle(1)))
    assert shard.deadline() is None
    told = x.TellNorms(0, ((0, 4.0),))
    assert shard.step(NOW, x.Measured(0, 0, 4.0)) == [told]
    assert shard.deadline() is not None
    assert shard.step(NOW, x.Waited()) == [x.TellNorms(0, ((0, 4.0),), asks=True)]
    assert shard.step(NOW, x.NormsHeard(1, 5, ((1, 1.0),), asks=True)) == [], "of a step that was never told"
    answered = shard.step(NOW, x.NormsHeard(1, 0, ((1, 1.0),), asks=True))
    assert answered[0] == told
    assert any(isinstance(effect, x.ApplyRoot) for effect in answered)
