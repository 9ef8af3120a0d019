"""What msgpack bytes claim to hold, found without building anything.

msgpack makes room for a whole array as soon as its length is read, so a few bytes of nested claims could take any amount
of memory, and millions of empty arrays take sixty times their bytes. Here the items are only counted, so the cost is that of the
items that are really there. The table is that of the msgpack specification.
"""

from dmi_protocol.errors import RemoteProtocolError

_Head = tuple[int, int, int, int, int]
"""The bytes and the items that follow a first byte; the bytes of its length, and what each unit of that length adds to
either."""


def _head(first: int) -> _Head:
    if first < 0x80 or first >= 0xE0:  # small integers
        return 0, 0, 0, 0, 0
    if first < 0x90:
        return 0, 2 * (first & 0x0F), 0, 0, 0
    if first < 0xA0:
        return 0, first & 0x0F, 0, 0, 0
    if first < 0xC0:
        return first & 0x1F, 0, 0, 0, 0
    return _HEADS[first]


_HEADS: dict[int, _Head] = (
    dict.fromkeys((192, 193, 194, 195), (0, 0, 0, 0, 0))  # nil, no type at all, false, true
    | {0xC4 + power: (0, 0, 1 << power, 1, 0) for power in range(3)}  # bytes
    | {0xC7 + power: (1, 0, 1 << power, 1, 0) for power in range(3)}  # extensions, their type among the bytes
    | {0xCA: (4, 0, 0, 0, 0), 0xCB: (8, 0, 0, 0, 0)}  # floats
    | {0xCC + power: (1 << power, 0, 0, 0, 0) for power in range(4)}  # unsigned integers
    | {0xD0 + power: (1 << power, 0, 0, 0, 0) for power in range(4)}  # signed integers
    | {0xD4 + power: (1 + (1 << power), 0, 0, 0, 0) for power in range(5)}  # extensions of a fixed size
    | {0xD9 + power: (0, 0, 1 << power, 1, 0) for power in range(3)}  # strings
    | {0xDC + power: (0, 0, 2 << power, 0, 1) for power in range(2)}  # arrays
    | {0xDE + power: (0, 0, 2 << power, 0, 2) for power in range(2)}  # maps
)
_TABLE = tuple(_head(first) for first in range(256))


def check_claims(data: bytes | memoryview, most_items: int) -> None:
    """Raise ``RemoteProtocolError`` unless ``data`` is one value of at most ``most_items`` items, and has room for them."""
    place, end, wanted, done = 0, len(data), 1, 0
    while wanted:
        if wanted > end - place or wanted + done > most_items:
            raise RemoteProtocolError(f"{wanted + done} items or more are claimed in {end} bytes")
        size, items, length_bytes, unit_bytes, unit_items = _TABLE[data[place]]
        place += 1
        if length_bytes:
            length = int.from_bytes(data[place : place + length_bytes], "big")
            size += length_bytes + length * unit_bytes
            items = length * unit_items
        place += size
        wanted += items - 1
        done += 1
    if place != end:
        raise RemoteProtocolError(f"{place} bytes are claimed in {end}")
