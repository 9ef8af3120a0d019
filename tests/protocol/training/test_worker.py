"""The worker's machine: its share is pushed as aligned sums, which are kept until the next version is whole."""

from random import Random

import pytest

from dmi_protocol.errors import LocalProtocolError
from dmi_protocol.training import exchange as x
from dmi_protocol.training.step import Handle, Release, Subtree, Sum
from dmi_protocol.training.worker import Worker
from tests.protocol.training.world import NOW, World


def computed(worker: Worker, leaf: int, handle: int | None, bucket: int = 0) -> list[x.WorkerEffect]:
    return worker.step(NOW, x.Computed(0, leaf, bucket, None if handle is None else Handle(handle)))


def test_an_unaligned_share_is_pushed_as_its_aligned_subtrees() -> None:
    worker = Worker(x.Assigned(1, (1, 2, 3)), 1)
    assert worker.step(NOW, x.StepBegan(0)) == [x.Compute(0, 1), x.Compute(0, 2), x.Compute(0, 3)]
    assert computed(worker, 1, 11) == [x.Push(0, 0, Subtree(1, 1), Handle(11))]
    assert computed(worker, 3, 13) == []
    assert computed(worker, 2, 12) == [Sum(Handle(12), Handle(13)), x.Push(0, 0, Subtree(2, 2), Handle(12))]


def test_an_absent_leaf_is_pushed_as_absent() -> None:
    worker = Worker(x.Assigned(1, (0,)), 1)
    worker.step(NOW, x.StepBegan(0))
    assert computed(worker, 0, None) == [x.Push(0, 0, Subtree(0, 1), None)]


def test_a_worker_without_leaves_only_waits() -> None:
    worker = Worker(x.Assigned(1, ()), 1)
    assert worker.step(NOW, x.StepBegan(0)) == []
    assert worker.step(NOW, x.Shown(1, 0)) == [x.InstallVersion(1)]


def test_sums_are_kept_until_every_bucket_is_shown() -> None:
    worker = Worker(x.Assigned(1, (0,)), 2)
    worker.step(NOW, x.StepBegan(0))
    computed(worker, 0, 1, bucket=0)
    computed(worker, 0, 2, bucket=1)
    assert worker.step(NOW, x.Shown(1, 1)) == []
    assert worker.missing() == (0,)
    assert worker.step(NOW, x.Shown(1, 0)) == [Release(Handle(1)), Release(Handle(2)), x.InstallVersion(1)]
    assert worker.current is None


@pytest.mark.parametrize("shown", [x.Shown(0, 0), x.Shown(3, 0)])
def test_an_answer_of_another_version_completes_nothing(shown: x.Shown) -> None:
    worker = Worker(x.Assigned(1, (0,)), 1)
    worker.step(NOW, x.StepBegan(0))
    assert worker.step(NOW, shown) == []
    assert worker.current == 0


def test_a_fast_server_may_show_the_version_after_next() -> None:
    worker = Worker(x.Assigned(1, ()), 2)
    worker.step(NOW, x.StepBegan(0))
    assert worker.step(NOW, x.Shown(1, 0)) == []
    assert worker.step(NOW, x.Shown(2, 0)) == []
    assert worker.step(NOW, x.Shown(1, 1)) == [x.InstallVersion(1)]
    assert worker.step(NOW, x.Shown(2, 1)) == [], "between steps nothing is installed"
    assert worker.step(NOW, x.StepBegan(1)) == [x.InstallVersion(2)]


def test_what_is_given_later_is_computed_in_the_same_step_and_pushed_for_itself() -> None:
    worker = Worker(x.Assigned(1, (0,)), 1)
    worker.step(NOW, x.StepBegan(0))
    computed(worker, 0, 1)
    again = [x.Push(0, 0, Subtree(0, 1), Handle(1)), x.PullBuckets(1, (0,))]
    assert worker.step(NOW, x.Assigned(2, (0, 1), moved=(0,))) == [*again, x.Compute(0, 1)]
    assert computed(worker, 1, 2) == [x.Push(0, 0, Subtree(1, 1), Handle(2))]
    assert worker.step(NOW, x.Assigned(1, (0, 1, 2))) == [], "an older generation says nothing new"


def test_only_what_has_moved_is_pushed_again() -> None:
    worker = Worker(x.Assigned(1, (0,)), 2)
    worker.step(NOW, x.StepBegan(0))
    computed(worker, 0, 1, bucket=0)
    computed(worker, 0, 2, bucket=1)
    again = [x.Push(0, 1, Subtree(0, 1), Handle(2)), x.PullBuckets(1, (1,))]
    assert worker.step(NOW, x.Assigned(2, (0,), moved=(1,))) == again
    worker.step(NOW, x.Shown(1, 1))
    assert worker.step(NOW, x.Assigned(3, (0,), moved=(1,))) == [], "it was shown already"


def test_a_leaf_of_another_step_or_of_somebody_else_is_dropped() -> None:
    worker = Worker(x.Assigned(1, (0,)), 1)
    worker.step(NOW, x.StepBegan(0))
    assert computed(worker, 1, 5) == [Release(Handle(5))]
    assert worker.step(NOW, x.Computed(3, 0, 0, Handle(6))) == [Release(Handle(6))]


def test_two_steps_at_once_are_our_own_fault() -> None:
    worker = Worker(x.Assigned(1, (0,)), 1)
    worker.step(NOW, x.StepBegan(0))
    with pytest.raises(LocalProtocolError):
        worker.step(NOW, x.StepBegan(1))


def test_what_came_is_not_pushed_again_and_what_did_not_is() -> None:
    """Whoever is slow is asked, and not sent gigabytes twice."""
    worker = Worker(x.Assigned(1, (0, 1, 2)), 2)
    worker.step(NOW, x.StepBegan(0))
    for leaf in range(3):
        for bucket in range(2):
            worker.step(NOW, x.Computed(0, leaf, bucket, Handle(1 + 3 * bucket + leaf)))
    assert worker.step(NOW, x.Waited()) == [x.PullBuckets(1, (0, 1))]
    assert worker.step(NOW, x.OutstandingHeard(0, 0, (Subtree(0, 4),))) == []
    assert worker.step(NOW, x.OutstandingHeard(0, 0, (Subtree(0, 2), Subtree(2, 1)))) == []
    assert worker.step(NOW, x.OutstandingHeard(0, 1, (Subtree(2, 1),))) == [x.Push(0, 1, Subtree(0, 2), Handle(4))]
    assert worker.step(NOW, x.OutstandingHeard(1, 1, ())) == [], "of another step"


@pytest.mark.parametrize("clips", [False, True], ids=["", "clips"])
@pytest.mark.parametrize("seed", range(20))
def test_what_was_lost_on_the_way_is_said_again(seed: int, clips: bool) -> None:
    random = Random(seed)
    world = World([(0, 1, 2), (3,)], [(0,), (1,)], 4, 3, random, clips=clips)
    world.open()
    for _ in range(100):
        world.network = [parcel for parcel in world.network if random.random() < 0.5]
        world.run()
        if world.ended:
            break
        for worker in range(2):
            world.hear(worker, x.Waited())
        for shard in range(2):
            if world.shards[shard].deadline() is not None:
                world.tell(shard, x.Waited())
    assert world.applied == world.expected()
    assert world.ended == {0, 1}


def test_a_joiner_remembers_nothing_of_the_versions_before_its_first() -> None:
    """What it was shown while it greeted, and knew no version yet, is of steps that others have made."""
    worker = Worker(x.Assigned(1, ()), 2)
    worker.step(NOW, x.Shown(1, 0))
    worker.step(NOW, x.Shown(2, 0))
    assert worker.step(NOW, x.StepBegan(1)) == []
    worker.check()
    assert worker.step(NOW, x.Shown(2, 1)) == [x.InstallVersion(2)]
    worker.check()
