"""Numbers of bytes, written and read."""

import pytest

from dmi_protocol.sizes import in_bytes, in_words


def test_sizes_are_for_people() -> None:
    assert [in_words(count) for count in (0, 999, 1_000, 1_500_000, 2 * 10**9, 10**13, 10**16)] == [
        "0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 GB", "10.0 TB", "10000.0 TB",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "count"), [("50GB", 50 * 10**9), ("1.5 mb", 1_500_000), ("7B", 7), ("many", None)])
def test_what_people_write_is_read(text: str, count: int | None) -> None:
    assert in_bytes(text) == count
