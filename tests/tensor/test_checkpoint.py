"""Parts of a checkpoint: what they hold comes back, and what is no part of this job's is refused."""

import errno
import resource
from pathlib import Path

import msgpack
import pytest
import torch

from dmi_protocol.training.layout import BufferSpec, Definition, ParameterSpec
from dmi_tensor.checkpoint import CorruptPartError, Part, part_of, read_part, restore, write_part
from dmi_tensor.shard import Shard
from dmi_tensor.tree_sum import Share


def definition(width: int = 8) -> Definition:
    """Two groups, a frozen parameter and a buffer: a bucket of each kind."""
    parameters = (
        ParameterSpec("weight", (width, 3), "float32", 0),
        ParameterSpec("bias", (width,), "float32", 1),
        ParameterSpec("fixed", (5,), "float32", -1),
    )
    buffers = (BufferSpec("mean", (4,), "float32", persistent=True),)
    return Definition(parameters, buffers, (("weight",), ("bias",)), "AdamW", whole=False, leaves=4, clip_norm=None)


HYPER: bytes = msgpack.packb([{"lr": 0.1}, {"lr": 0.2}])


def trained(shards: int, steps: int) -> list[Shard]:
    """What some shards have after the same steps."""
    made = [Shard(definition(), index, shards) for index in range(shards)]
    for shard in made:
        for bucket in (*shard.buckets, *shard.frozen):
            shard.initialize(bucket, torch.full_like(shard.read(bucket, 0), 1.0 + bucket))
        for step in range(steps):
            advance(shard, step)
    return made


def advance(shard: Shard, step: int) -> None:
    for bucket in shard.buckets:
        found = shard.layout.buckets[bucket]
        tensor = torch.linspace(-1, 1 + step, found.length)
        share = Share(None if found.kind == "metrics" else tensor, [1.0] * len(found.segments), {})
        shard.apply(step, bucket, share, HYPER, ())


def parts(shards: int, steps: int, directory: Path) -> list[Part]:
    """The same, through files."""
    found = []
    for index, shard in enumerate(trained(shards, steps)):
        path = directory / f"{shards}-{index}.safetensors"
        write_part(path, part_of(shard, index, shards, steps, b"extra", (("torch", "2"),)))
        found.append(read_part(path))
    return found


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 3), (3, 2), (2, 5)])
@pytest.mark.parametrize("steps", [0, 4, 5])
def test_shards_go_on_from_parts_of_any_number(before: int, after: int, steps: int, tmp_path: Path) -> None:
    kept = parts(before, steps, tmp_path)
    assert {part.header.fingerprint for part in kept} == {(("torch", "2"),)}
    for index, expected in enumerate(trained(after, steps + 1)):
        shard = Shard(definition(), index, after)
        assert restore(shard, kept) == steps
        advance(shard, steps)
        for bucket in (*shard.buckets, *shard.frozen):
            assert torch.equal(shard.read(bucket, steps + 1), expected.read(bucket, steps + 1))
            torch.testing.assert_close(shard.state(bucket), expected.state(bucket), rtol=0, atol=0)


def test_parts_of_another_model_or_too_few_are_refused(tmp_path: Path) -> None:
    kept = parts(3, 2, tmp_path)
    with pytest.raises(CorruptPartError, match="another model"):
        restore(Shard(definition(width=9)), kept)
    with pytest.raises(CorruptPartError, match="lack the buckets"):
        restore(Shard(definition()), kept[:2])
    with pytest.raises(CorruptPartError, match="another model or step"):
        restore(Shard(definition()), [*kept[:2], *parts(3, 3, tmp_path)[2:]])


def test_what_a_disk_refuses_is_an_os_error_with_its_number(tmp_path: Path) -> None:
    """The library that writes the file has an error of its own; whoever asked looks at the number to know a full disk."""
    found, limit = part_of(trained(1, 1)[0], 0, 1, 1, b""), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_part(tmp_path / "a.safetensors", found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
