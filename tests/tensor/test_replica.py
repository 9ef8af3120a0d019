"""A bucket that has travelled to a copy: it goes on there with the bits that it has here."""

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
import torch
from msgspec.structs import replace

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.training.layout import BufferSpec, Definition, ParameterSpec
from dmi_tensor.frames import frame_of, spec_of, tensors_of
from dmi_tensor.optimizers import hyperparameters
from dmi_tensor.replica import Bucketful, bucketful, put_in_place
from dmi_tensor.shard import Shard
from dmi_tensor.tree_sum import Share

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True}),
    "rprop": ("Rprop", {"lr": 0.01}),
}
STEPS = 3
"""Before the bucket travels, and again after it."""


class Training:
    """The same sums for whoever asks, and the optimizer's options as a worker sends them."""

    def __init__(self, kind: str = "adamw", clip_norm: float | None = None) -> None:
        name, options = OPTIMIZERS[kind]
        parameters = (
            ParameterSpec("weight", (8, 3), "float32", 0),
            ParameterSpec("bias", (8,), "float32", 0),
            ParameterSpec("fixed", (5,), "float32", -1),
        )
        buffers = (
            BufferSpec("running_mean", (8,), "float32", persistent=True),
            BufferSpec("num_batches_tracked", (), "int64", persistent=True),
        )
        self._skipped = 2 if kind == "momentum" else 0
        """The bias has no gradient in this step of each three: torch's fused SGD must have one for all in its first step."""
        order = (("weight", "bias"),)
        self.definition = Definition(parameters, buffers, order, name, whole=False, leaves=4, clip_norm=clip_norm)
        self.hyper = hyperparameters(getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(1))], **options))

    def shard(self) -> Shard:
        """All buckets at version 0, with values that differ from element to element."""
        made = Shard(self.definition)
        for bucket in (*made.buckets, *made.frozen):
            values = made.read(bucket, 0)
            made.initialize(bucket, torch.arange(values.numel()).sin().to(values.dtype))
        return made

    def empty(self) -> Shard:
        """What a copy has before anything came."""
        return Shard(self.definition)

    def advance(self, shard: Shard, step: int, bucket: int) -> None:
        """One step."""
        found = shard.layout.buckets[bucket]
        weights = [float(segment.name != "bias" or step % 3 != self._skipped) for segment in found.segments]
        if found.kind == "metrics":
            root = Share(None, [], {"loss": (float(step), 1.0)})
        else:
            tensor = torch.linspace(-1, 1 + step, found.length)
            root = Share(tensor.to(torch.int64) if found.dtype == "int64" else tensor, weights, {})
        shard.apply(step, bucket, root, self.hyper, [(0, 4.0)])

    def trained(self, steps: int = STEPS) -> Shard:
        """The primary."""
        made = self.shard()
        for step in range(steps):
            for bucket in made.buckets:
                self.advance(made, step, bucket)
        return made


def through_the_wire(found: Bucketful) -> Bucketful:
    """The same, in the memory of a peer."""
    specs = [spec_of(tensor) for tensor in found.tensors]
    frames = [memoryview(bytearray(frame_of(tensor))) for tensor in found.tensors]
    return Bucketful(tensors_of(specs, frames), found.state, found.hyper, found.detail)


def equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def check_equal(one: Shard, other: Shard, bucket: int, version: int) -> None:
    """Values, what is shown with them, and what the optimizer remembers."""
    assert equal_bits(one.read(bucket, version), other.read(bucket, version))
    assert one.detail(bucket) == other.detail(bucket)
    assert one.hyper == other.hyper
    for mine, theirs in zip(one.state(bucket), other.state(bucket), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            same = equal_bits(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            assert same, name


def buckets_of(training: Training, kind: str) -> list[int]:
    return [bucket.index for bucket in training.empty().layout.buckets if bucket.kind == kind]


@pytest.mark.parametrize("steps", [0, 1, STEPS, STEPS + 1])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_bucket_goes_on_with_the_same_bits(kind: str, clip_norm: float | None, steps: int) -> None:
    training = Training(kind, clip_norm)
    primary, copy = training.trained(steps), training.empty()
    (bucket,) = buckets_of(training, "parameter")
    put_in_place(copy, bucket, steps, through_the_wire(bucketful(primary, bucket, steps)))
    check_equal(primary, copy, bucket, steps)
    for step in range(steps, steps + STEPS):
        training.advance(primary, step, bucket)
        training.advance(copy, step, bucket)
        check_equal(primary, copy, bucket, step + 1)


@pytest.mark.parametrize("kind", ["average", "agree", "metrics"])
def test_a_bucket_without_an_optimizer_goes_on_with_the_same_bits(kind: str) -> None:
    training = Training()
    primary, copy = training.trained(), training.empty()
    (bucket,) = buckets_of(training, kind)
    put_in_place(copy, bucket, STEPS, through_the_wire(bucketful(primary, bucket, STEPS)))
    copy.hyper = primary.hyper  # the metrics bucket brings none; some bucket with parameters always does
    check_equal(primary, copy, bucket, STEPS)
    for step in range(STEPS, 2 * STEPS):
        training.advance(primary, step, bucket)
        training.advance(copy, step, bucket)
        check_equal(primary, copy, bucket, step + 1)


@pytest.mark.parametrize("version", [0, STEPS])
def test_frozen_values_are_those_of_any_version(version: int) -> None:
    training = Training()
    primary, copy = training.trained(), training.empty()
    (bucket,) = buckets_of(training, "frozen")
    put_in_place(copy, bucket, version, through_the_wire(bucketful(primary, bucket, version)))
    for later in range(version, version + 3):
        check_equal(primary, copy, bucket, later)


def test_what_travels_stays_as_it_is_while_the_primary_goes_on() -> None:
    training = Training()
    primary = training.trained()
    (bucket,) = buckets_of(training, "parameter")
    found = bucketful(primary, bucket, STEPS)
    before = [tensor.clone() for tensor in found.tensors]
    for step in range(STEPS, STEPS + 2):
        training.advance(primary, step, bucket)
    assert all(equal_bits(one, other) for one, other in zip(before, found.tensors, strict=True))


def test_a_copy_that_is_filled_anew_forgets_what_it_had() -> None:
    training = Training("momentum")
    (bucket,) = buckets_of(training, "parameter")
    primary, copy = training.trained(STEPS), training.trained(STEPS - 2)
    put_in_place(copy, bucket, STEPS, through_the_wire(bucketful(primary, bucket, STEPS)))
    training.advance(primary, STEPS, bucket)
    training.advance(copy, STEPS, bucket)
    check_equal(primary, copy, bucket, STEPS + 1)


def _state(change: Callable[[list[list[Any]]], object]) -> Callable[[Bucketful], Bucketful]:
    """Change what names the state."""

    def spoil(found: Bucketful) -> Bucketful:
        named = msgpack.unpackb(found.state)
        change(named)
        return replace(found, state=msgpack.packb(named))

    return spoil


def _tensors(change: Callable[[tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]) -> Callable[[Bucketful], Bucketful]:
    return lambda found: replace(found, tensors=tuple(change(found.tensors)))


SPOILED: dict[str, Callable[[Bucketful], Bucketful]] = {
    "no values": _tensors(lambda _: ()),
    "too few elements": _tensors(lambda tensors: (tensors[0][:-1], *tensors[1:])),
    "another shape": _tensors(lambda tensors: (tensors[0].view(2, -1), *tensors[1:])),
    "another dtype": _tensors(lambda tensors: (tensors[0].double(), *tensors[1:])),
    "state without its tensors": _tensors(lambda tensors: tensors[:-1]),
    "no state of a segment": _state(lambda named: named.pop()),
    "state of one segment more": _state(lambda named: named.append([])),
    "state that is no list": lambda found: replace(found, state=msgpack.packb({"exp_avg": None})),
    "names that are no text": _state(lambda named: named[0].append((7, 1.0))),
    "values that are no numbers": _state(lambda named: named[0].append(("step", "1"))),
    "state that is no msgpack": lambda found: replace(found, state=b"\xc1"),
    "state that claims too much": lambda found: replace(found, state=b"\xdd\xff\xff\xff\xff"),
    "hyper that is no msgpack": lambda found: replace(found, hyper=b"\xc1"),
    "hyper that is no list": lambda found: replace(found, hyper=msgpack.packb({"lr": 0.1})),
    "hyper without the group": lambda found: replace(found, hyper=msgpack.packb([])),
    "hyper that no optimizer takes": lambda found: replace(found, hyper=msgpack.packb([{"lr": -1.0}])),
    "hyper of another type": lambda found: replace(found, hyper=msgpack.packb([{"lr": "much"}])),
    "state of another shape": _tensors(lambda tensors: (*tensors[:-1], torch.zeros(3))),
    "state of another dtype": _tensors(lambda tensors: (*tensors[:-1], tensors[-1].to(torch.int64))),
    "state that lacks a name": _state(lambda named: named[0].pop(0)),
}


def put_what_is_spoiled(spoil: Callable[[Bucketful], Bucketful]) -> None:
    """Never goes on with it: a fused kernel writes beyond the end of a state that is too small."""
    training = Training()
    (bucket,) = buckets_of(training, "parameter")
    put_in_place(training.empty(), bucket, STEPS, spoil(bucketful(training.trained(), bucket, STEPS)))


@pytest.mark.parametrize("what", SPOILED)
def test_what_a_peer_has_spoiled_is_its_fault(what: str) -> None:
    with pytest.raises(RemoteProtocolError):
        put_what_is_spoiled(SPOILED[what])


def test_what_an_optimizer_kept_under_other_hyperparameters_may_be_there() -> None:
    """A script may set the momentum to nothing in mid-training."""
    training = Training("momentum")
    (bucket,) = buckets_of(training, "parameter")
    found = bucketful(training.trained(), bucket, STEPS)
    (group,) = msgpack.unpackb(found.hyper)
    put_in_place(
        training.empty(),
        bucket,
        STEPS,
        replace(found, hyper=msgpack.packb([group | {"momentum": 0.0, "nesterov": False}])),
    )
