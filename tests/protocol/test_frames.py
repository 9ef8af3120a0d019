"""The frames that came are those that the envelope describes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.frames import check_payload
from dmi_protocol.tensor_spec import TensorSpec, describe

payloads = st.lists(st.binary(max_size=64), max_size=4)


def described(payload: list[bytes]) -> tuple[list[TensorSpec], list[memoryview]]:
    frames = [memoryview(data) for data in payload]
    return [describe("uint8", (frame.nbytes,), frame) for frame in frames], frames


@given(payloads)
def test_what_was_described_is_accepted(payload: list[bytes]) -> None:
    check_payload(*described(payload))


@given(payloads.filter(any), st.data())
def test_one_changed_bit_is_noticed(payload: list[bytes], data: st.DataObject) -> None:
    specs, _ = described(payload)
    which = data.draw(st.sampled_from([index for index, frame in enumerate(payload) if frame]))
    damaged = bytearray(payload[which])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    frames = [memoryview(damaged if index == which else frame) for index, frame in enumerate(payload)]
    with pytest.raises(RemoteProtocolError, match="checksum"):
        check_payload(specs, frames)


@given(payloads)
def test_a_frame_too_many_or_too_few_is_noticed(payload: list[bytes]) -> None:
    specs, frames = described([*payload, b"last"])
    with pytest.raises(RemoteProtocolError, match="described"):
        check_payload(specs, frames[:-1])
    with pytest.raises(RemoteProtocolError, match="described"):
        check_payload(specs[:-1], frames)


def test_a_frame_of_another_length_is_noticed_without_a_checksum() -> None:
    with pytest.raises(RemoteProtocolError, match="3 bytes where 4"):
        check_payload([TensorSpec("uint8", (4,), 4)], [memoryview(b"abc")])


def test_a_spec_that_contradicts_itself_is_noticed() -> None:
    with pytest.raises(RemoteProtocolError, match="claimed"):
        check_payload([TensorSpec("float32", (4,), 4)], [memoryview(b"abcd")])
