"""Batches in memory that a gateway and a replica share: whose it is, and until when."""

from collections.abc import Iterator

import pytest

from dmi_node.gateway.shared_batches import LEAST_BYTES, SharedBatches
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import PublicKey
from dmi_protocol.messages.serving import Shared
from dmi_protocol.tensor_spec import TensorSpec, describe
from dmi_wire import shared_memory
from dmi_wire.arena import Reader, place

REPLICA, OTHER = PublicKey("r"), PublicKey("o")
ROWS = LEAST_BYTES // 16 + 1


@pytest.fixture
def shared() -> Iterator[SharedBatches]:
    made = SharedBatches()
    yield made
    made.forget(REPLICA)
    made.forget(OTHER)


def specs(rows: int = ROWS) -> list[TensorSpec]:
    return [describe("uint8", (rows, 3)), describe("float32", (rows, 4))]


def put(shared: SharedBatches, batch: int, rows: int = ROWS) -> Shared | None:
    first, second = bytes([batch]) * (rows * 3), bytes([batch + 1]) * (rows * 16)
    return shared.put(REPLICA, batch, specs(rows), [[first[:5], memoryview(first)[5:]], [second]], rows)


def answer(reader: Reader, told: Shared, rows: int = ROWS) -> list[TensorSpec]:
    """As a replica does: one byte for each row."""
    outputs = [describe("uint8", (rows, 1))]
    reader.view(told.segment, told.size, told.outputs_at, rows)[:] = b"\x07" * rows
    return outputs


def test_inputs_lie_one_after_another_and_outputs_after_them(shared: SharedBatches) -> None:
    shared.learn(REPLICA, [describe("uint8", (ROWS, 1))], ROWS)
    told, reader = put(shared, 1), Reader()
    assert told is not None
    offsets, end = place(specs())
    views = [
        bytes(reader.view(told.segment, told.size, at, spec.length_bytes))
        for at, spec in zip(offsets, specs(), strict=True)
    ]
    assert views == [b"\x01" * (ROWS * 3), b"\x02" * (ROWS * 16)]
    assert told.outputs_at == end
    outputs = answer(reader, told)
    (found,) = shared.outputs(REPLICA, 1, outputs)
    reader.view(told.segment, told.size, told.outputs_at, 1)[:] = b"x"
    assert bytes(found) == b"\x07" * ROWS, "they are the gateway's own"


def test_few_bytes_are_sent(shared: SharedBatches) -> None:
    assert put(shared, 1, rows=10) is None


def test_memory_is_used_again_once_the_replica_has_answered_and_not_before(shared: SharedBatches) -> None:
    first, second = put(shared, 1), put(shared, 2)
    assert first is not None
    assert second is not None
    assert first.segment != second.segment
    shared.done(REPLICA, 1)
    shared.done(REPLICA, 1)
    third = put(shared, 3)
    assert third is not None
    assert third.segment == first.segment


def test_what_a_lost_replica_may_still_write_to_is_never_used_again(shared: SharedBatches) -> None:
    before, reader = put(shared, 1), Reader()
    assert before is not None
    reader.view(before.segment, before.size, 0, 1)
    shared.forget(REPLICA)
    after = put(shared, 1)
    assert after is not None
    assert after.segment != before.segment
    reader.view(before.segment, before.size, 0, 3)[:] = b"old"
    assert bytes(Reader().view(after.segment, after.size, 0, 3)) == b"\x01" * 3
    with pytest.raises(FileNotFoundError):
        Reader().view(before.segment, before.size, 0, 1)


def test_outputs_of_what_was_not_shared_are_nonsense(shared: SharedBatches) -> None:
    put(shared, 1)
    with pytest.raises(RemoteProtocolError):
        shared.outputs(OTHER, 1, specs())
    with pytest.raises(RemoteProtocolError):
        shared.outputs(REPLICA, 1, [describe("uint8", (1 << 30,))])


def test_without_memory_to_spare_batches_are_sent(shared: SharedBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "available_bytes", lambda: 0)
    assert put(shared, 1) is None


def test_a_larger_batch_takes_the_place_of_the_smallest_segment(shared: SharedBatches) -> None:
    small = put(shared, 1)
    assert small is not None
    shared.done(REPLICA, 1)
    large = put(shared, 2, rows=100_000)
    assert large is not None
    assert large.size >= 100_000 * 19
    with pytest.raises(FileNotFoundError):
        Reader().view(small.segment, small.size, 0, 1)


def test_what_is_large_is_not_kept_and_large_outputs_have_no_room(shared: SharedBatches) -> None:
    shared.learn(REPLICA, [describe("uint8", (1, 1 << 20))], 1)
    told = put(shared, 1)
    assert told is not None
    assert told.size == 1 << 20, "a megabyte for each row would be gigabytes"
    large = shared.put(REPLICA, 2, [describe("uint8", ((1 << 27) + 1,))], [[b"x"]], 1)
    assert large is not None
    shared.done(REPLICA, 2)
    with pytest.raises(FileNotFoundError):
        Reader().view(large.segment, large.size, 0, 1)
