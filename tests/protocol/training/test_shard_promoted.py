"""A copy that takes its primary's place in the middle of a step of a job that clips."""

from dmi_protocol.instant import Instant
from dmi_protocol.training import exchange as x
from dmi_protocol.training.backup import Backup
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Release, Subtree
from tests.protocol.training.test_shard import FIELDS, begin, whole
from tests.protocol.training.world import NOW

NORMS = ((0, 4.0), (1, 1.0), (2, 9.0))
OWN = ((0, 4.0), (1, 1.0))


def promoted(*applied: int, leased: x.Leased | None = None) -> tuple[Shard, list[x.ShardEffect]]:
    """A copy that came at version 3, made version 4, and has ``applied`` at version 5. Bucket 2 is another shard's."""
    copy = Backup(x.Opened((0, 1), (), 2, clips=True, shards=(0, 1)), b"model", FIELDS)
    for bucket in (0, 1):
        copy.copied(bucket, 3)
    for step, bucket in ((3, 0), (3, 1), *((4, bucket) for bucket in applied)):
        copy.replicated(step, bucket, None, b"lr", NORMS)
    copy.check()
    shard, effects = Shard.promoted(x.Rostered(9, (0,), 0), 0, copy, NOW, leased)
    shard.check()
    return shard, effects


def test_the_norms_of_a_step_that_was_applied_in_part_are_known_and_told_again() -> None:
    shard, effects = promoted(0)
    assert effects == [x.TellNorms(4, OWN), x.ShowBucket(5, 0, (0,))]
    assert shard.readable == {4}, "bucket 0 of version 3 was overwritten"
    begin(shard, 0, 4)
    assert shard.step(NOW, x.Contributed(0, 4, 1, Subtree(1, 1), Handle(1))) == []
    assert shard.step(NOW, x.Contributed(0, 4, 0, Subtree(0, 2), Handle(2))) == [Release(Handle(2))]
    effects = shard.step(NOW, x.Contributed(0, 4, 1, Subtree(0, 1), Handle(3)))
    assert not any(isinstance(effect, x.Measure) for effect in effects)
    assert x.ApplyRoot(4, 1, Handle(3), b"lr", NORMS) in effects
    assert x.ShowBucket(5, 1, (0,)) in effects
    assert shard.current == 5
    assert x.Measure(5, 0, Handle(4)) in whole_after_begin(shard)


def whole_after_begin(shard: Shard) -> list[x.ShardEffect]:
    """The next step has norms of its own."""
    begin(shard, 0, 5)
    return whole(shard, 5, 0, 4)


def test_between_two_steps_the_version_before_can_still_be_shown_and_norms_are_measured() -> None:
    shard, effects = promoted()
    assert effects == [x.TellNorms(3, OWN)], "another shard may still be at step 3"
    assert shard.readable == {3, 4}
    assert shard.step(NOW, x.Pulled(0, 3, (0,))) == [x.ShowBucket(3, 0, (0,))]
    begin(shard, 0, 4)
    assert x.Measure(4, 0, Handle(1)) in whole(shard, 4, 0, 1)


def test_all_buckets_may_be_a_step_further() -> None:
    shard, effects = promoted(0, 1)
    assert effects == [x.TellNorms(4, OWN)]
    assert shard.current == 5
    assert shard.readable == {4, 5}


def test_without_a_lease_nothing_is_shown_until_there_is_one() -> None:
    shard, effects = promoted(0, leased=x.Leased(Instant(0)))
    assert effects == [x.TellNorms(4, OWN)]
    begin(shard, 0, 4)
    effects = whole(shard, 4, 1, 1)
    assert x.ApplyRoot(4, 1, Handle(1), b"lr", NORMS) in effects
    assert not any(isinstance(effect, x.ShowBucket) for effect in effects)
    assert shard.step(NOW, x.Pulled(0, 5, (0, 1))) == []
    effects = shard.step(NOW, x.Leased(Instant(1)))
    assert [effect for effect in effects if isinstance(effect, x.ShowBucket)][:2] == [
        x.ShowBucket(5, 0, (0,)),
        x.ShowBucket(5, 1, (0,)),
    ]
    assert shard.current == 5
