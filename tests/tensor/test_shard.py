"""Versions that are the same lie in the same memory, and whatever is still read is not overwritten."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.training.layout import BufferSpec, Definition, ParameterSpec
from dmi_tensor.optimizers import hyperparameters
from dmi_tensor.shard import Shard
from dmi_tensor.tree_sum import Share

HYPER = hyperparameters(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9))
DEFINITION = Definition(
    (ParameterSpec("w", (3,), "float32", 0),),
    (BufferSpec("b", (2,), "float32", persistent=True),),
    (("w",),),
    "SGD",
    whole=False,
    leaves=1,
    clip_norm=None,
)


def root(shard: Shard, bucket: int, value: float) -> Share:
    length = shard.layout.buckets[bucket].length
    return Share(torch.full((length,), value), [1.0], {})


@given(st.lists(st.booleans(), max_size=12))
def test_the_version_before_stays_readable_and_what_is_the_same_is_known(changes: list[bool]) -> None:
    shard = Shard(DEFINITION)
    parameter, buffer = 0, 1
    shard.initialize(parameter, torch.arange(shard.layout.buckets[parameter].length).float())
    seen = {bucket: [shard.read(bucket, 0).clone()] for bucket in (parameter, buffer)}
    for step, is_changed in enumerate(changes):
        for bucket in (parameter, buffer):
            shard.apply(step, bucket, root(shard, bucket, float(step + 1)) if is_changed else None, HYPER, [])
            assert torch.equal(shard.read(bucket, step), seen[bucket][step]), "a worker may still read it"
            seen[bucket].append(shard.read(bucket, step + 1).clone())
            assert shard.is_as_before(bucket, step + 1) == (not is_changed)
            assert torch.equal(seen[bucket][step], seen[bucket][step + 1]) == (not is_changed)


def test_a_parameter_that_thaws_beside_others_begins_its_momentum() -> None:
    definition = Definition(
        (ParameterSpec("v", (16,), "float32", 0), ParameterSpec("w", (16,), "float32", 0)),
        (),
        (("v", "w"),),
        "SGD",
        whole=False,
        leaves=1,
        clip_norm=None,
    )
    shard, expected = Shard(definition), [torch.nn.Parameter(torch.zeros(16)) for _ in "vw"]
    plain = [torch.optim.SGD([parameter], lr=0.5, momentum=0.9, fused=True) for parameter in expected]
    for step in range(4):
        weights = [1.0, 1.0 if step >= 2 else 0.0]
        shard.apply(step, 0, Share(torch.full((32,), 0.25), weights, {}), HYPER, [])
        for parameter, weight, own in zip(expected, weights, plain, strict=True):
            parameter.grad = torch.full((16,), 0.25) if weight else None
            own.step()
    assert torch.equal(shard.read(0, 4), torch.cat([parameter.detach() for parameter in expected]))
