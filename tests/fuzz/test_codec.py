"""Any bytes at all decode to a message or to ``RemoteProtocolError``, before memory is taken for what they claim."""

import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmi_protocol import limits
from dmi_protocol.cluster.command import Invite
from dmi_protocol.codec import decode_struct, encode_struct, open_envelope, seal, unpack
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.identity import NodeId, PublicKey, RequestId
from dmi_protocol.messages.blobs import BlobChunk
from dmi_protocol.messages.consensus import Append, Entry, Noop, Voters
from dmi_protocol.messages.control import Propose
from dmi_protocol.messages.membership import Ping, Rumor, Update
from dmi_protocol.messages.mesh import Wire
from dmi_protocol.messages.parameters import ParameterMessage
from dmi_protocol.messages.roles import FromRole, ToRole
from dmi_protocol.version import PROTOCOL

NODE = NodeId("0123456789abcdef")
MESSAGES = [
    Ping(1, (Update(NODE, "suspect", 3, NODE),), (Rumor(NODE, "job:x", 2, b"\x00"),)),
    Append(3, 7, 2, (Entry(8, 3, Noop()), Entry(9, 3, Voters((NODE,)))), 7),
    Propose(Invite(RequestId("r"), PublicKey("k" * 40), 5)),
    BlobChunk("a" * 64, 0, b"abc"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: Wire) -> None:
    assert open_envelope(seal(message), Wire) == message
    assert decode_struct(encode_struct(message), type(message)) == message


@settings(max_examples=500)
@given(st.binary(max_size=300), st.sampled_from([Wire, ParameterMessage, ToRole, FromRole]))
def test_any_bytes_are_a_message_or_a_refusal(data: bytes, kind: type) -> None:
    for decode in (open_envelope, decode_struct):
        try:
            decode(data, kind)
        except RemoteProtocolError:
            continue


@settings(max_examples=500)
@given(st.sampled_from(MESSAGES), st.data())
def test_a_damaged_message_is_a_message_or_a_refusal(message: Wire, data: st.DataObject) -> None:
    body = bytearray(seal(message))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        open_envelope(bytes(body), Wire)
    except RemoteProtocolError:
        return


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=500)
@given(values, st.sampled_from(["append", "ping", "propose", "install", "exchange-contribution"]))
def test_any_value_is_a_message_or_a_refusal(value: object, tag: str) -> None:
    inside = {"type": tag, **value} if isinstance(value, dict) else value
    try:
        open_envelope(msgpack.packb([1, inside]), Wire)
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "claim",
    [
        b"\xdb" + struct.pack(">I", 2**32 - 1),  # a string
        b"\xc6" + struct.pack(">I", 2**32 - 1),  # bytes
        b"\xdd" + struct.pack(">I", 2**32 - 1),  # an array
        b"\xdf" + struct.pack(">I", 2**32 - 1),  # a map
        b"\xc9" + struct.pack(">I", 2**32 - 1) + b"\x01",  # an extension
        b"\x91" * 100_000,  # depth
        b"\xdc\xff\xff" * 1_000,  # arrays that claim room inside one another
        b"\xde\xff\xff\xa1k" * 1_000,
        b"\xdc\x00\x3f" + (b"\xdc\xff\xff" + b"\x90" * 65_535) * 63,  # emptiness, and much of it
        b"\xdc\xff\xff" + b"\x90" * 65_536,  # something after the end
        b"\xdd\x00\x00\xff\xff" + (b"\xdc\xff\xfe" + b"\xa2xy" * 65_534) * 20,
    ],
    ids=["string", "bytes", "array", "map", "extension", "depth", "nested", "nested maps", "empty", "more", "small"],
)
def test_a_claim_of_absurd_size_takes_no_memory(claim: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            unpack(claim)
        assert tracemalloc.get_traced_memory()[1] < limits.STRING_BYTES
    finally:
        tracemalloc.stop()


def test_what_is_within_the_bounds_takes_a_small_multiple_of_the_largest_message() -> None:
    rows = 3
    data = msgpack.packb([[[] for _ in range(limits.COLLECTION_ITEMS - 1)] for _ in range(rows)])
    tracemalloc.start()
    try:
        assert len(unpack(data)) == rows
        assert tracemalloc.get_traced_memory()[1] < 5 * limits.MESSAGE_BYTES
    finally:
        tracemalloc.stop()


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(RemoteProtocolError, match="version 99"):
        open_envelope(msgpack.packb([99, {"type": "nack", "sequence": 1}]), Wire)


@settings(max_examples=500)
@given(values)
def test_any_value_in_the_place_of_the_version_is_refused(value: object) -> None:
    if type(value) is int and value == PROTOCOL:
        return
    with pytest.raises(RemoteProtocolError):
        open_envelope(msgpack.packb([value, {"type": "nack", "sequence": 1}]), Wire)


@pytest.mark.parametrize("term", [-1, 2**63, 2**64 - 1])
def test_a_number_that_no_disk_can_hold_is_refused(term: int) -> None:
    with pytest.raises(RemoteProtocolError):
        open_envelope(msgpack.packb([1, {"type": "voted", "term": term, "granted": False}]), Wire)
