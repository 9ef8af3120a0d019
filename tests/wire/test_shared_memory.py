"""Shared memory of one node's role processes: private, bounded, and gone when they are."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dmi_protocol.errors import RemoteProtocolError
from dmi_wire.shared_memory import DIRECTORY, Segment

OTHER_END = """
import sys
from dmi_wire.shared_memory import Segment
segment = Segment.attach(sys.argv[1], 4096)
segment.view(8, 5)[:] = b"there"
"""


def test_another_process_reads_and_writes_the_same_bytes() -> None:
    segment = Segment.create(4096)
    try:
        subprocess.run([sys.executable, "-c", OTHER_END, segment.name], check=True, timeout=30)
    finally:
        segment.remove_name()
    assert bytes(segment.view(8, 5)) == b"there"


def test_a_segment_is_its_owners_alone_and_its_name_goes() -> None:
    segment = Segment.create(100)
    path = DIRECTORY / segment.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    segment.remove_name()
    segment.remove_name()
    assert not path.exists()
    segment.buffer[:3] = b"yes"
    assert bytes(segment.buffer[:3]) == b"yes", "the mapping outlives the name"


@pytest.mark.parametrize("name", ["", "../etc/passwd", "dmi-", "dmi-" + "g" * 32, "dmi-" + "0" * 33, "/dev/shm/x"])
def test_a_name_that_is_no_segments_is_the_peers_fault(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Segment.attach(name, 100)


def test_a_segment_of_another_size_or_mode_is_refused() -> None:
    segment = Segment.create(100)
    try:
        with pytest.raises(RemoteProtocolError):
            Segment.attach(segment.name, 1 << 62)
        os.chmod(DIRECTORY / segment.name, 0o644)
        with pytest.raises(RemoteProtocolError):
            Segment.attach(segment.name, 100)
    finally:
        segment.remove_name()


def test_a_name_that_is_gone_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        Segment.attach("dmi-" + "0" * 32, 100)


def test_more_than_there_is_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmi_wire.shared_memory.DIRECTORY", tmp_path)
    with pytest.raises(OSError):
        Segment.create(1 << 60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 101), (100, 1), (5, -1)])
def test_a_view_outside_is_the_peers_fault(offset: int, length: int) -> None:
    segment = Segment.create(100)
    segment.remove_name()
    with pytest.raises(RemoteProtocolError):
        segment.view(offset, length)
