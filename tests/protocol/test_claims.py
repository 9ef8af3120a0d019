"""Items are counted as msgpack counts them."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.claims import check_claims
from dmi_protocol.errors import RemoteProtocolError

SCALARS = [None, True, 0, -1, 127, 128, 2**16, 2**32, 2**64 - 1, -(2**7), -(2**15), -(2**31), -(2**63), 1.5]
SIZES = [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536]


def items(value: object) -> int:
    if isinstance(value, list):
        return 1 + sum(map(items, value))
    if isinstance(value, dict):
        return 1 + sum(items(key) + items(inner) for key, inner in value.items())
    return 1


@pytest.mark.parametrize(
    "value", [*SCALARS, *("s" * n for n in SIZES), *(b"b" * n for n in SIZES)], ids=lambda v: str(v)[:9]
)
def test_a_scalar_is_one_item(value: object) -> None:
    data = msgpack.packb([value])
    check_claims(data, 2)
    with pytest.raises(RemoteProtocolError, match="items"):
        check_claims(data, 1)
    with pytest.raises(RemoteProtocolError):
        check_claims(data[:-1], 2)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 65_535, 65_536])
@pytest.mark.parametrize("kind", [list, dict])
def test_collections_count_what_they_hold(kind: type, size: int) -> None:
    value = kind((number, number) for number in range(size)) if kind is dict else [7] * size
    data = msgpack.packb(value)
    check_claims(data, items(value))
    with pytest.raises(RemoteProtocolError):
        check_claims(data, items(value) - 1)
    if size:
        with pytest.raises(RemoteProtocolError):
            check_claims(data[:-1], items(value))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 16, 17, 300, 70_000])
def test_extensions_are_passed_over(size: int) -> None:
    check_claims(msgpack.packb([msgpack.ExtType(5, b"x" * size), 1]), 3)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=60,
)


@given(values)
def test_any_value_has_its_items_and_its_bytes(value: object) -> None:
    data = msgpack.packb(value)
    check_claims(data, items(value))
    for wrong in (data[:-1], data[: len(data) // 2]):
        with pytest.raises(RemoteProtocolError):
            check_claims(wrong, items(value))


@given(st.binary(max_size=200))
def test_what_msgpack_takes_is_never_refused(data: bytes) -> None:
    try:
        msgpack.unpackb(data, strict_map_key=False)
    except Exception:  # noqa: BLE001 (whatever msgpack makes of nonsense)
        return
    check_claims(data, 1_000)
