"""Shared memory of one node's role processes: private, bounded, and gone when they are."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dmi_protocol.errors import RemoteProtocolError
from dmi_wire.shared_memory import Segment

OTHER_END = """
import sys
from dmi_wire.shared_memory import Segment
segment = Segment.attach(sys.argv[1], 4096)
segment.view(8, 5)[:] = b"there"
"""


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(4096)
    yield made
    made.withdraw()


def test_another_process_reads_and_writes_the_same_bytes(segment: Segment) -> None:
    subprocess.run([sys.executable, "-c", OTHER_END, segment.name], check=True, timeout=30)
    assert bytes(segment.view(8, 5)) == b"there"


def test_what_is_withdrawn_cannot_be_attached_and_stays_mapped(segment: Segment) -> None:
    attached = Segment.attach(segment.name, 4096)
    segment.withdraw()
    segment.withdraw()
    with pytest.raises(FileNotFoundError):
        Segment.attach(segment.name, 4096)
    segment.buffer[:3] = b"yes"
    assert bytes(attached.buffer[:3]) == b"yes"


def test_nobody_can_change_the_size_under_the_other(segment: Segment) -> None:
    pid, descriptor, _ = segment.name.split("-")
    assert int(pid) == os.getpid()
    with pytest.raises(PermissionError):
        os.ftruncate(int(descriptor), 1)


@pytest.mark.parametrize("name", ["", "../etc/passwd", "1", "-3", "1-2", "1-2-3-4", "0-1-2", "1/2/3", "1-1234567-3"])
def test_a_name_that_is_no_segments_is_the_peers_fault(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Segment.attach(name, 100)


def test_a_file_that_is_no_segment_is_refused() -> None:
    descriptor = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(RemoteProtocolError):
        Segment.attach(f"{os.getpid()}-{descriptor}-{os.fstat(descriptor).st_ino}", 100)
    os.close(descriptor)


def test_another_segment_under_the_same_number_is_not_taken_for_it() -> None:
    first = Segment.create(4096)
    first.withdraw()
    second = Segment.create(4096)
    assert second.name.split("-")[:2] == first.name.split("-")[:2], "the kernel gives the lowest number that is free"
    with pytest.raises(FileNotFoundError):
        Segment.attach(first.name, 4096)
    second.withdraw()


@pytest.mark.parametrize("size", [1 << 62, 4095, 0, -1])
def test_a_segment_of_another_size_is_refused(segment: Segment, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Segment.attach(segment.name, size)


def test_an_unsealed_file_is_refused() -> None:
    descriptor = os.memfd_create("dmi-exchange", os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, 4096)
    with pytest.raises(RemoteProtocolError):
        Segment.attach(f"{os.getpid()}-{descriptor}", 4096)
    os.close(descriptor)


def test_more_than_there_is_leaves_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        Segment.create(1 << 60)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 4097), (4096, 1), (5, -1)])
def test_a_view_outside_is_the_peers_fault(segment: Segment, offset: int, length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        segment.view(offset, length)
