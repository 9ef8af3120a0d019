"""Who must have a version before a worker is shown it, and how a copy comes to count."""

from dmi_protocol.instant import Instant
from dmi_protocol.training import exchange as x
from dmi_protocol.training.backup import Backup, Tell
from dmi_protocol.training.copies import HEADER, Copies
from dmi_protocol.training.norms import Squares
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Release, Subtree
from tests.protocol.training.test_shard import FIELDS, begin, whole
from tests.protocol.training.world import NOW

OPENED = x.Opened((0, 1), (), 2, clips=False, shards=(0,))


def rostered(generation: int, backups: tuple[int, ...] = (), filling: tuple[int, ...] = ()) -> x.Rostered:
    return x.Rostered(generation, (0,), 0, backups=backups, filling=filling)


def filled() -> Copies:
    """Server 1 has been sent everything at version 1, and says so."""
    copies = Copies((0, 1), (4,), b"model")
    work = copies.roster(rostered(1, filling=(1,)), 0, FIELDS)
    assert work == [x.BeginFill(1, b"model", FIELDS), x.CopyBucket(1, 4, 0)]
    assert copies.made(0, 1) == [x.CopyBucket(1, 0, 1)]
    assert copies.may_show(0, 1), "it does not count before it was sent everything"
    assert copies.made(1, 1) == [x.CopyBucket(1, 1, 1)]
    return copies


def test_a_copy_that_was_sent_everything_is_waited_for() -> None:
    copies = filled()
    assert not copies.may_show(0, 1)
    assert copies.copied(1, 0, 1) == []
    assert copies.may_show(0, 1)
    assert not copies.may_show(1, 1)
    assert copies.followers(0) == (1,)


def test_a_copy_is_told_to_have_caught_up_once_it_has_made_a_version_itself() -> None:
    """Simulation, seed 6: a worker that was behind wanted the version before the one that was copied."""
    copies = filled()
    for bucket, version in ((HEADER, 0), (4, 0), (0, 1), (1, 1), (0, 2)):
        assert copies.copied(1, bucket, version) == []
    assert copies.copied(1, 1, 2) == [x.TellCaughtUp(1)]
    assert copies.roster(rostered(2, filling=(1,)), 2, FIELDS) == [x.TellCaughtUp(1)], "until it is agreed"
    assert copies.roster(rostered(3, backups=(1,)), 2, FIELDS) == []
    assert not copies.may_show(0, 3)


def test_what_a_copy_says_that_it_has_not_is_sent_again_and_nothing_else() -> None:
    copies = filled()
    roots: tuple[dict[int, Handle | None], bytes, Squares] = ({0: Handle(7)}, b"lr", ())
    assert copies.ask([0], 1) == [x.QueryReplica(1)], "a question is small: the copy may only be slow"
    again = copies.told(1, ((HEADER, 0), (0, 1)), [0], 1, roots)
    assert again == [x.CopyBucket(1, 1, 1), x.CopyBucket(1, 4, 1), x.ReplicateRoot((1,), 1, 0, Handle(7), b"lr", ())]
    copies.ask([0], 1)
    assert copies.told(1, ((HEADER, 0), (0, 2), (1, 1), (4, 1)), [0], 1, roots) == []


def test_a_copy_that_never_heard_its_beginning_gets_it_again() -> None:
    copies = filled()
    copies.ask([], 1)
    again = copies.told(1, (), [], 1, None)
    assert again[0] == x.BeginFill(1, b"model", FIELDS)
    assert [effect.bucket for effect in again[1:] if isinstance(effect, x.CopyBucket)] == [0, 1, 4]


def test_what_was_sent_after_the_question_is_not_lost() -> None:
    copies = Copies((0, 1), (), b"model")
    copies.roster(rostered(1, filling=(1,)), 0, FIELDS)
    copies.ask([], 0)
    assert copies.made(0, 1) == [x.CopyBucket(1, 0, 1)]
    assert copies.told(1, ((HEADER, 0),), [0], 0, ({0: Handle(7)}, b"lr", ())) == []
    copies.ask([0], 0)
    assert copies.told(1, ((HEADER, 0),), [0], 0, None) == [x.CopyBucket(1, 0, 1)]


def test_a_copy_that_is_gone_is_not_waited_for() -> None:
    copies = filled()
    copies.roster(rostered(2), 0, FIELDS)
    assert copies.may_show(1, 1)
    assert copies.copied(1, 0, 1) == []


def backup() -> Backup:
    copy = Backup(OPENED, b"model", FIELDS)
    for bucket in (0, 1):
        assert copy.copied(bucket, 3) == [Tell(bucket, 3)]
    return copy


def test_a_copy_applies_in_order_and_says_again_what_comes_again() -> None:
    copy = Backup(OPENED, b"model", FIELDS)
    assert copy.replicated(3, 0, Handle(1), b"lr", ()) == [Release(Handle(1))], "the bucket will come anew"
    copy = backup()
    assert copy.replicated(3, 0, Handle(2), b"lr", ()) == [
        x.ApplyRoot(3, 0, Handle(2), b"lr", ()),
        Release(Handle(2)),
        Tell(0, 4),
    ]
    assert copy.replicated(3, 0, Handle(3), b"lr", ()) == [Release(Handle(3)), Tell(0, 4)]
    copy.check()


def promoted(leased: x.Leased | None = None) -> tuple[Shard, list[x.ShardEffect]]:
    """A copy that has version 5 of bucket 0 and version 4 of bucket 1."""
    copy = backup()
    for step, bucket in ((3, 0), (3, 1), (4, 0)):
        copy.replicated(step, bucket, None, b"lr", ())
    return Shard.promoted(rostered(9), 0, copy, NOW, leased)


def test_a_copy_that_is_promoted_shows_what_it_has_and_gathers_the_rest() -> None:
    shard, effects = promoted()
    assert x.ShowBucket(5, 0, (0,)) in effects
    assert shard.current == 4
    assert shard.step(NOW, x.Greeted(0, FIELDS, b"model")) == [x.WelcomeWorker(0, 4)]
    begin(shard, 0, 4)
    assert shard.step(NOW, x.Contributed(0, 4, 0, Subtree(0, 2), Handle(8))) == [Release(Handle(8))], "it has this one"
    effects = whole(shard, 4, 1, 9)
    assert [type(effect) for effect in effects] == [x.ApplyRoot, x.ShowBucket, Release]
    assert shard.current == 5


def test_nothing_is_shown_without_a_lease() -> None:
    shard, effects = promoted(x.Leased(Instant(0)))
    assert not any(isinstance(effect, x.ShowBucket) for effect in effects)
    assert shard.step(NOW, x.Pulled(0, 4, (1,))) == []
    effects = shard.step(NOW, x.Leased(Instant(1)))
    assert effects == [x.ShowBucket(5, 0, (0,)), x.ShowBucket(4, 1, (0,))]


def test_a_joiner_comes_in_with_a_step_of_the_lead_s() -> None:
    shard, _ = promoted()
    shard.step(NOW, x.Rostered(10, (0, 3), 0, joiners=(3,)))
    shard.step(NOW, x.Greeted(0, FIELDS, b"model"))
    assert shard.step(NOW, x.Greeted(3, FIELDS, b"model")) == []
    assert begin(shard, 0, 4) == [], "the lead did not know of the joiner when it began"
    effects = shard.step(NOW, x.Began(0, 4, (1, 1), b"lr", b"kept"))
    assert effects == [x.WelcomeWorker(3, 4, b"kept")]
    whole(shard, 4, 1, 1)
    shard.step(NOW, x.Began(0, 5, (1, 1), b"lr"))
    for bucket in (0, 1):
        assert not any(isinstance(effect, x.ApplyRoot) for effect in whole(shard, 5, bucket, 2 + bucket)), (
            "it wants version 4"
        )
    assert any(isinstance(effect, x.ApplyRoot) for effect in begin(shard, 3, 4))
