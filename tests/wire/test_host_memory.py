"""How much memory a host has."""

from pathlib import Path

import pytest

from dmi_wire.host_memory import available_bytes, total_bytes

MEMINFO = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:   8000 kB\n"


def test_as_the_kernel_says() -> None:
    assert available_bytes(MEMINFO) == 8000 * 1024
    assert total_bytes(MEMINFO, ()) == 16000 * 1024
    assert (available_bytes("nothing"), total_bytes("nothing", ())) == (None, None)


@pytest.mark.parametrize(
    ("text", "found"), [("4096000\n", 4_096_000), ("max\n", 16_384_000), (f"{1 << 62}", 16_384_000)]
)
def test_a_container_has_what_it_may_have(text: str, found: int, tmp_path: Path) -> None:
    (tmp_path / "limit").write_text(text)
    assert total_bytes(MEMINFO, (str(tmp_path / "limit"), str(tmp_path / "none"))) == found
