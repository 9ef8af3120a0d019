"""The optimizer's state comes to the lead a few buckets at a time, and no question keeps a server busy for long."""

import pytest
import torch

from dmi.run.collected import Collected
from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.messages.parameters import State
from dmi_protocol.training.layout import Definition, ParameterSpec, assign_buckets
from dmi_tensor.checkpoint import Model, optimizer_state, part_of
from dmi_tensor.frames import frame_of, spec_of
from dmi_tensor.optimizers import hyperparameters
from dmi_tensor.replica import pack_state
from dmi_tensor.shard import Shard
from dmi_tensor.tree_sum import Share

SHARDS, PARAMETERS = 2, 13
LENGTH = limits.BUCKET_BYTES // 4
"""Each parameter fills a bucket."""
ADAM = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.01)


@pytest.fixture(scope="module")
def shards() -> tuple[Shard, ...]:
    """Of one model, after a step."""
    names = tuple(f"p{n}" for n in range(PARAMETERS))
    specs = tuple(ParameterSpec(name, (LENGTH,), "float32", 0) for name in names)
    definition = Definition(specs, (), (names,), "Adam", whole=False, leaves=1, clip_norm=None)
    made = tuple(Shard(definition, shard, SHARDS) for shard in range(SHARDS))
    for shard in made:
        for bucket in shard.buckets:
            if shard.layout.buckets[bucket].kind == "parameter":
                shard.apply(0, bucket, Share(torch.full((LENGTH,), float(bucket + 1)), [1.0], {}), hyper(), ())
    return made


def hyper() -> bytes:
    return hyperparameters(ADAM)


def collected(shards: tuple[Shard, ...]) -> Collected:
    return Collected(shards[0].layout, assign_buckets(shards[0].layout, SHARDS))


def answer(shards: tuple[Shard, ...], shard: int, bucket: int) -> tuple[State, list[memoryview]]:
    tensors, state = pack_state(shards[shard], bucket)
    message = State(1, shard, 1, bucket, tuple(map(spec_of, tensors)), state, shards[shard].hyper)
    return message, [frame_of(tensor) for tensor in tensors]


def test_a_few_are_under_way_at_a_time_and_all_of_it_is_what_a_checkpoint_holds(shards: tuple[Shard, ...]) -> None:
    found, rounds = collected(shards), 0
    asked = {shard: list(found.next(shard)) for shard in range(SHARDS)}
    while not found.is_whole:
        rounds += 1
        for shard in range(SHARDS):
            assert len(found.under_way(shard)) <= 4
            assert tuple(asked[shard]) == found.under_way(shard)
            if asked[shard]:
                found.take(*answer(shards, shard, asked[shard].pop(0)))
                asked[shard] += found.next(shard)
    assert rounds == 7, "of thirteen buckets one shard has seven, and each is asked for once"
    got = optimizer_state(shards[0].definition, shards[0].layout, found.hyper, found.state)
    whole = Model([part_of(s, index, SHARDS, 1, b"") for index, s in enumerate(shards)]).optimizer_state()
    assert got["param_groups"] == whole["param_groups"]
    assert got["state"].keys() == whole["state"].keys() == set(range(PARAMETERS))
    for number, values in whole["state"].items():
        assert got["state"][number].keys() == values.keys()
        assert all(torch.equal(got["state"][number][name], value) for name, value in values.items())


def test_what_comes_twice_or_was_not_asked_for_changes_nothing(shards: tuple[Shard, ...]) -> None:
    found = collected(shards)
    first, *rest = found.next(0)
    found.take(*answer(shards, 0, first))
    before = dict(found.state)
    found.take(*answer(shards, 0, first))
    found.take(*answer(shards, 1, 1))
    assert (found.state, found.under_way(0)) == (before, tuple(rest))


def test_nonsense_is_refused_and_still_under_way(shards: tuple[Shard, ...]) -> None:
    found = collected(shards)
    first = found.next(0)[0]
    message, frames = answer(shards, 0, first)
    with pytest.raises(RemoteProtocolError):
        found.take(message, frames[:-1])
    assert first in found.under_way(0)
