"""The shard's machine: whatever order and repetition, each step is applied once, with the one fixed sum."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmi_protocol.errors import LocalProtocolError, RemoteProtocolError
from dmi_protocol.instant import after
from dmi_protocol.training import exchange as x
from dmi_protocol.training.shard import Shard
from dmi_protocol.training.step import Handle, Release, Subtree
from tests.protocol.training.world import NOW, World


def deal(leaves: int, workers: int, random: Random) -> list[tuple[int, ...]]:
    """Any assignment of leaves to workers, aligned or not, zero leaves included."""
    owner = [random.randrange(workers) for _ in range(leaves)]
    return [tuple(leaf for leaf in range(leaves) if owner[leaf] == worker) for worker in range(workers)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 5),
    st.sampled_from([[(0, 1, 2)], [(0, 2), (1,)], [(2,), (0,), (1,)], [(0, 1, 2), ()]]),
    st.booleans(),
    st.frozensets(st.integers(0, 7)),
)
def test_any_universe_applies_every_step_once_with_the_fixed_sum(
    seed: int, leaves: int, workers: int, owned: list[tuple[int, ...]], clips: bool, absent: frozenset[int]
) -> None:
    random = Random(seed)
    world = World(deal(leaves, workers, random), owned, leaves, 4, random, clips, absent)
    world.open()
    world.run()
    assert world.declined == []
    assert world.applied == world.expected()
    assert world.ended == set(range(len(owned)))
    assert {part.step for part in world.last} == {4}
    assert not any(tensors.held for tensors in [*world.of_worker, *world.of_shard]), "a tensor is never released"
    for norms in world.norms.values():
        assert norms == ({((0, 1.0), (1, 2.0), (2, 3.0))} if clips else {()})


FIELDS = (("torch", "2"),)


def ready(workers: int = 2, buckets: tuple[int, ...] = (0,), leaves: int = 2, clips: bool = False) -> Shard:
    """A shard that has welcomed its workers."""
    shard = Shard(x.Rostered(3, tuple(range(workers)), 0), 0)
    for worker in range(workers):
        shard.step(NOW, x.Greeted(worker, FIELDS, b"model"))
    shard.step(NOW, x.Opened(buckets, (), leaves, clips, (0,)))
    for bucket in buckets:
        shard.step(NOW, x.Initialized(0, bucket))
    return shard


def begin(shard: Shard, worker: int, step: int, hyper: bytes = b"lr") -> list[x.ShardEffect]:
    return shard.step(NOW, x.Began(worker, step, (1, 1), hyper))


def whole(shard: Shard, step: int, bucket: int, handle: int, worker: int = 0) -> list[x.ShardEffect]:
    """The whole root in one contribution."""
    return shard.step(NOW, x.Contributed(worker, step, bucket, Subtree(0, 2), Handle(handle)))


def test_nobody_is_welcome_before_everybody_said_the_same_and_the_weights_are_there() -> None:
    shard = Shard(x.Rostered(3, (0, 1), 0), 0)
    assert shard.step(NOW, x.Greeted(1, (), b"model")) == [x.Open(b"model")]
    assert shard.step(NOW, x.Opened((0,), (), 2, clips=False, shards=(0,))) == []
    assert shard.step(NOW, x.Initialized(0, 0)) == []
    assert shard.step(NOW, x.Greeted(0, (), b"model")) == [x.WelcomeWorker(0, 0), x.WelcomeWorker(1, 0)]


def test_frozen_buckets_are_kept_and_never_stepped() -> None:
    shard = Shard(x.Rostered(3, (0,), 0), 0)
    shard.step(NOW, x.Greeted(0, (), b"model"))
    shard.step(NOW, x.Opened((0,), (4,), 2, clips=False, shards=(0,)))
    assert shard.step(NOW, x.Initialized(0, 0)) == []
    assert shard.step(NOW, x.Initialized(0, 4)) == [x.WelcomeWorker(0, 0)]
    with pytest.raises(RemoteProtocolError):
        whole(shard, 0, 4, 1)


def test_a_mismatch_names_both_workers_and_the_field() -> None:
    shard = Shard(x.Rostered(3, (0, 1), 0), 0)
    shard.step(NOW, x.Greeted(0, (("data", "1797"), ("torch", "2.13")), b"model"))
    effects = shard.step(NOW, x.Greeted(1, (("data", "1796"), ("torch", "2.13")), b"model"))
    assert effects == [x.Disagree(1, 0, "data", "1796", "1797")]


def test_other_hyperparameters_and_other_batches_are_contradictions() -> None:
    shard = ready()
    assert begin(shard, 0, 0, b"0.1") == []
    assert begin(shard, 1, 0, b"0.2") == [x.Disagree(1, 0, "hyperparameters", "", "")]
    effects = shard.step(NOW, x.Began(1, 0, (1, 0), b"0.1"))
    assert effects == [x.Disagree(1, 0, "samples in the batch", "1", "2")]


def test_who_is_in_no_roster_is_declined_and_its_tensor_dropped() -> None:
    shard = ready()
    effects = shard.step(NOW, x.Contributed(7, 0, 0, Subtree(0, 2), Handle(7)))
    assert effects == [x.Decline(7, "peer", "7"), Release(Handle(7))]
    assert begin(shard, 0, 0) == []
    assert begin(shard, 1, 0) == [], "the contribution must not have counted"


def test_survivors_contributions_stay_valid_in_a_new_generation() -> None:
    shard = ready()
    begin(shard, 0, 0)
    begin(shard, 1, 0)
    assert shard.step(NOW, x.Contributed(0, 0, 0, Subtree(0, 1), Handle(1))) == []
    assert shard.step(NOW, x.Rostered(4, (0,), 0)) == []
    effects = shard.step(NOW, x.Contributed(0, 0, 0, Subtree(1, 1), Handle(2)))
    assert x.ApplyRoot(0, 0, Handle(1), b"lr", ()) in effects


def test_a_version_is_given_up_only_when_a_contribution_proves_that_its_step_is_complete_everywhere() -> None:
    shard = ready()
    begin(shard, 0, 0)
    begin(shard, 1, 0)
    whole(shard, 0, 0, 1)
    assert shard.current == 1
    assert shard.readable == {0, 1}, "another shard may still be at step 0"
    assert shard.step(NOW, x.Pulled(1, 0, (0,))) == [x.ShowBucket(0, 0, (1,))]
    begin(shard, 0, 1)
    assert shard.readable == {0, 1}
    effects = shard.step(NOW, x.Contributed(0, 1, 0, Subtree(0, 1), Handle(2)))
    assert effects == [x.Forget(0)]
    assert shard.step(NOW, x.Pulled(1, 0, (0,))) == [], "it has begun with it"
    shard.step(NOW, x.Rostered(4, (0, 1, 2), 0))
    assert shard.step(NOW, x.Pulled(2, 0, (0,))) == [x.Decline(2, "version", "0")]


def test_nothing_is_applied_while_a_worker_may_still_read_what_would_be_overwritten() -> None:
    shard = ready()
    begin(shard, 0, 0)
    begin(shard, 1, 0)
    whole(shard, 0, 0, 1)
    begin(shard, 0, 1)
    effects = whole(shard, 1, 0, 2)
    assert any(isinstance(e, x.ApplyRoot) for e in effects), "worker 1 has begun step 0: one step behind is allowed"
    begin(shard, 0, 2)
    assert not any(isinstance(e, x.ApplyRoot) for e in whole(shard, 2, 0, 3)), "worker 1 is two steps behind"
    assert any(isinstance(e, x.ApplyRoot) for e in begin(shard, 1, 1))


def test_the_lead_must_have_begun_so_that_its_checkpoint_comes_first() -> None:
    shard = ready()
    begin(shard, 1, 0)
    assert whole(shard, 0, 0, 1, worker=1) == []
    assert shard.step(NOW, x.CheckpointAsked(0, 0, b"extra")) == [
        x.WritePart(0, b"extra", final=False, fingerprint=FIELDS)
    ]
    assert shard.step(NOW, x.CheckpointAsked(1, 0, b"other")) == []
    assert begin(shard, 0, 0)[0] == x.ApplyRoot(0, 0, Handle(1), b"lr", ())


def test_the_lead_may_have_the_optimizer_state_between_two_steps() -> None:
    shard = ready()
    assert shard.step(NOW, x.StateAsked(0, 0, (0,))) == [x.GiveState(0, 0, (0,))]
    assert shard.step(NOW, x.StateAsked(1, 0, (0,))) == [x.Decline(1, "step", "0")]
    assert shard.step(NOW, x.StateAsked(0, 4, (0,))) == [x.Decline(0, "step", "0")]


def test_a_repeated_contribution_to_a_finished_step_is_dropped() -> None:
    shard = ready()
    begin(shard, 0, 0)
    begin(shard, 1, 0)
    whole(shard, 0, 0, 1)
    assert whole(shard, 0, 0, 2) == [Release(Handle(2))]


def test_clipping_waits_for_the_norms_of_all_shards() -> None:
    shard = Shard(x.Rostered(3, (0,), 0), 1)
    shard.step(NOW, x.Greeted(0, (), b"model"))
    shard.step(NOW, x.Opened((1, 3), (), 2, clips=True, shards=(0, 1)))
    shard.step(NOW, x.Initialized(0, 1))
    shard.step(NOW, x.Initialized(0, 3))
    begin(shard, 0, 0)
    assert whole(shard, 0, 1, 1) == [x.Measure(0, 1, Handle(1))]
    assert whole(shard, 0, 3, 2) == [x.Measure(0, 3, Handle(2))]
    assert shard.step(NOW, x.Measured(0, 3, 9.0)) == []
    assert shard.step(NOW, x.Measured(0, 1, 1.0)) == [x.TellNorms(0, ((1, 1.0), (3, 9.0)))]
    effects = shard.step(NOW, x.NormsHeard(0, 0, ((0, 4.0), (2, 2.0))))
    norms = ((0, 4.0), (1, 1.0), (2, 2.0), (3, 9.0))
    assert x.ApplyRoot(0, 1, Handle(1), b"lr", norms) in effects
    assert x.ApplyRoot(0, 3, Handle(2), b"lr", norms) in effects


def test_a_shard_goes_on_from_a_checkpoint_without_initial_values() -> None:
    shard = Shard(x.Rostered(3, (0, 1), 0), 0)
    assert shard.step(NOW, x.ResumeAsked(1)) == [x.GiveResume(1)], "before anybody has described the model"
    shard.step(NOW, x.Greeted(0, FIELDS, b"model"))
    assert shard.step(NOW, x.Opened((0,), (1,), 2, clips=False, shards=(0,), step=5, fingerprint=FIELDS)) == []
    assert shard.step(NOW, x.Greeted(1, FIELDS, b"model")) == [x.WelcomeWorker(0, 5), x.WelcomeWorker(1, 5)]
    assert shard.step(NOW, x.Pulled(1, 5, (0,))) == [x.ShowBucket(5, 0, (1,))]
    begin(shard, 0, 5)
    assert whole(shard, 5, 0, 1) == [], "worker 1 has not begun"
    assert x.ApplyRoot(5, 0, Handle(1), b"lr", ()) in begin(shard, 1, 5)
    assert shard.current == 6


def test_whoever_differs_from_those_who_made_the_checkpoint_is_named() -> None:
    shard = Shard(x.Rostered(3, (0,), 0), 0)
    shard.step(NOW, x.Greeted(0, FIELDS, b"model"))
    opened = x.Opened((0,), (), 2, clips=False, shards=(0,), step=5, fingerprint=(("torch", "1"),))
    assert shard.step(NOW, opened) == [x.Disagree(0, None, "torch", "2", "1")]


def test_a_script_that_goes_on_where_another_has_ended_is_a_contradiction() -> None:
    shard = ready()
    assert shard.step(NOW, x.FinishAsked(0, 0, b"")) == [x.WritePart(0, b"", final=True, fingerprint=FIELDS)]
    assert begin(shard, 1, 0) == [x.Disagree(1, 0, "steps", "1", "0")]


def test_the_shard_ends_when_its_part_is_durable_and_all_scripts_are_over() -> None:
    shard = ready()
    shard.step(NOW, x.FinishAsked(0, 0, b""))
    assert shard.step(NOW, x.PartDurable(0, final=True)) == []
    assert shard.step(NOW, x.FinishAsked(1, 0, b"")) == [x.SayFinished((0, 1)), x.End()]


@pytest.mark.parametrize(
    "event",
    [
        x.Contributed(0, 1, 0, Subtree(0, 2), None),
        x.Contributed(0, 0, 5, Subtree(0, 2), None),
        x.Contributed(0, 0, 0, Subtree(0, 4), None),
        x.Began(0, 1, (), b""),
        x.Pulled(0, 0, (9,)),
        x.CheckpointAsked(0, 1, b""),
    ],
)
def test_what_no_correct_worker_sends_is_the_peers_fault(event: x.ShardEvent) -> None:
    with pytest.raises(RemoteProtocolError):
        ready().step(NOW, event)


def test_a_measure_that_nobody_asked_for_is_ours() -> None:
    with pytest.raises(LocalProtocolError):
        ready().step(NOW, x.Measured(5, 0, 1.0))


def test_a_version_is_kept_for_a_worker_without_leaves_that_has_not_seen_it() -> None:
    """Simulation, seed 167: it asked for the version again, and was declined."""
    shard = ready(workers=2)
    begin(shard, 0, 0)
    begin(shard, 1, 0)
    whole(shard, 0, 0, 1)
    begin(shard, 0, 1)
    assert x.Forget(0) in whole(shard, 1, 0, 2), "everybody has begun step 0"
    begin(shard, 0, 2)
    assert x.Forget(1) not in whole(shard, 2, 0, 3), "worker 1 may not have seen version 1 yet"
    assert shard.step(NOW, x.Pulled(1, 1, (0,))) == [x.ShowBucket(1, 0, (1,))]
    effects = begin(shard, 1, 1)
    assert effects[0] == x.Forget(1), "before its memory is written"
    assert isinstance(effects[1], x.ApplyRoot)
    assert shard.readable == {2, 3}


def test_who_has_had_a_version_meanwhile_is_not_refused_it_when_the_lease_is_back() -> None:
    """It had asked while nothing could be shown, and again; the answer to another question came first."""
    shard = ready(workers=1)
    begin(shard, 0, 0)
    assert x.ShowBucket(1, 0, (0,)) in whole(shard, 0, 0, 1)
    shard.step(NOW, x.Leased(NOW))
    assert shard.step(NOW, x.Pulled(0, 1, (0,))) == [], "nothing can be shown now"
    begin(shard, 0, 1)
    whole(shard, 1, 0, 2)
    assert shard.step(NOW, x.Leased(after(NOW, 1))) == [
        x.ShowBucket(2, 0, (0,)),
        Release(Handle(2)),
        x.ShowBucket(1, 0, (0,)),
    ]
    shard.step(NOW, x.Leased(NOW))
    assert shard.step(NOW, x.Pulled(0, 1, (0,))) == []
    begin(shard, 0, 2)
    assert x.Forget(1) in whole(shard, 2, 0, 3)
    assert shard.step(NOW, x.Leased(after(NOW, 1))) == [x.ShowBucket(3, 0, (0,)), Release(Handle(3))]
    assert shard.step(NOW, x.Pulled(1, 1, (0,))) == [x.Decline(1, "peer", "1")]
