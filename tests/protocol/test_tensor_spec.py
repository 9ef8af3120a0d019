"""What a spec claims is checked against itself and the limits, whatever the numbers are."""

import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol import limits
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.tensor_spec import DIMENSIONS, ITEM_BYTES, TensorSpec, describe

dtypes = st.sampled_from(sorted(ITEM_BYTES))


@given(dtypes, st.lists(st.integers(0, 8), max_size=5))
def test_what_is_described_is_accepted(dtype: str, shape: list[int]) -> None:
    spec = describe(dtype, tuple(shape))
    spec.check()
    assert spec.length_bytes == ITEM_BYTES[dtype] * math.prod(shape)


@given(dtypes, st.lists(st.integers(0, 2**64 - 1), max_size=5), st.integers(-(2**63), 2**64 - 1))
def test_a_claim_is_accepted_only_when_it_is_true_and_within_bounds(dtype: str, shape: list[int], length: int) -> None:
    true = length == ITEM_BYTES[dtype] * math.prod(shape) and length <= limits.TENSOR_FRAME_BYTES
    try:
        TensorSpec(dtype, tuple(shape), length).check()
    except RemoteProtocolError:
        assert not true
    else:
        assert true


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("float31", (3,), 12),
        TensorSpec("x" * 100_000, (), 0),
        TensorSpec("int8", (-1, -1), 1),
        TensorSpec("int8", (1,) * (DIMENSIONS + 1), 1),
        TensorSpec("int8", (2**32, 2**32), 0),  # zero in 64 bits
        TensorSpec("int8", (limits.TENSOR_FRAME_BYTES + 1,), limits.TENSOR_FRAME_BYTES + 1),
    ],
    ids=["dtype", "long dtype", "negative", "dimensions", "overflow", "too large"],
)
def test_what_cannot_be_is_the_peers_fault(spec: TensorSpec) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        spec.check()
    assert len(str(refused.value)) < 300


def test_a_dtype_that_does_not_travel_is_our_own_fault() -> None:
    with pytest.raises(KeyError):
        describe("float31", (1,))


def test_the_checksum_is_that_of_the_bytes() -> None:
    data = bytes(range(12))
    assert describe("float32", (3,), memoryview(data)).checksum == zlib.crc32(data)
