"""Values that travel arrive as they were, and nothing else travels."""

import math
from collections import Counter, OrderedDict, deque
from fractions import Fraction
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmi_protocol.errors import RemoteProtocolError
from dmi_tensor.values import CannotTravelError, pack, unpack

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() |
    st.complex_numbers(allow_nan=False), lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() |
    st.integers() | st.tuples(st.integers()), inner), max_leaves=12,
)  # fmt: skip


@given(PLAIN)
def test_plain_values_are_the_same_of_the_same_types(value: Any) -> None:
    found = unpack(pack(value))
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2, 3},
        frozenset("ab"),
        1j - 2,
        OrderedDict(b=1, a=2),
        Counter("aab"),
        deque([1, 2], 5),
        np.float32(0.1),
        np.int8(-3),
        np.bool_(True),  # noqa: FBT003
        np.datetime64("2026-11-27"),
        torch.Size([2, 3]),
    ],
)
def test_each_kind_arrives_as_what_it_was(value: object) -> None:
    found = unpack(pack(value))
    assert type(found) is type(value)
    assert found == value
    assert getattr(found, "maxlen", None) == getattr(value, "maxlen", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_and_arrays_keep_their_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).mul(3).to(dtype)
    found = unpack(pack({"here": [tensor.T if tensor.dim() > 1 else tensor]}))["here"][0]
    assert found.dtype == dtype
    assert torch.equal(found, tensor.T if tensor.dim() > 1 else tensor)
    found.zero_()  # it is its own
    array = np.asarray(torch.randn(shape))
    there = unpack(pack(array))
    assert there.dtype == array.dtype
    assert there.shape == array.shape
    assert np.array_equal(there, array)


def test_sets_have_one_form_whatever_their_order() -> None:
    assert pack({"x", "y", "z"}) == pack({"z", "y", "x"})
    assert math.isnan(unpack(pack(math.nan)))


class Own(int):
    """No plain number."""


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": [1, {"b": print}]}, "['a'][1]['b']: a builtin_function_or_method"),
        (Fraction(1, 3), "a fractions.Fraction"),
        ({"x": Own(1)}, "['x']: a tests.tensor.test_values.Own"),
        ((torch.ones(2).to_sparse(),), "[0]: a tensor that is torch.sparse_coo"),
        (torch.empty(2, device="meta"), "on meta"),
        (np.array([object()]), "a numpy.ndarray"),
    ],
)
def test_what_does_not_travel_is_told_with_its_place(value: object, told: str) -> None:
    with pytest.raises(CannotTravelError) as caught:
        pack(value)
    assert told in str(caught.value)


def test_what_holds_itself_is_no_endless_loop() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CannotTravelError, match="holds itself"):
        pack(loop)


@given(st.binary(max_size=64))
def test_any_bytes_give_a_value_or_a_refusal(data: bytes) -> None:
    try:
        unpack(data)
    except RemoteProtocolError:
        return


@pytest.mark.parametrize("kind", range(14))
@settings(max_examples=30)
@given(inner=PLAIN)
def test_an_extension_with_any_content_gives_a_value_or_a_refusal(kind: int, inner: Any) -> None:
    try:
        unpack(msgpack.packb(msgpack.ExtType(kind, pack(inner))))
    except RemoteProtocolError:
        return
