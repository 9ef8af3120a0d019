"""A disk that is slow holds no step up, and one that cannot write is named."""

import select
from pathlib import Path
from threading import Event

import pytest
import torch

from dmi_node.roles import writer as module
from dmi_node.roles.writer import Writer, Written
from dmi_protocol.training.layout import Definition, ParameterSpec
from dmi_tensor.checkpoint import Part, part_of, read_part, write_part
from dmi_tensor.shard import Shard

SECONDS = 20


def part(step: int) -> Part:
    definition = Definition((ParameterSpec("w", (3,), "float32", 0),), (), (("w",),), "SGD", False, 1, None)  # noqa: FBT003
    return part_of(Shard(definition), 0, 1, step, b"extra")


def all_of(writer: Writer, count: int) -> list[Written]:
    """So many, each waited for by the descriptor alone."""
    found: list[Written] = []
    while len(found) < count:
        assert select.select([writer.fd], [], [], SECONDS)[0], "nothing is told"
        found += writer.done()
    return found


def has_no_room(writer: Writer) -> bool:
    return writer.is_full


class SlowDisk:
    """Writes when it is let."""

    def __init__(self) -> None:
        self.is_writing, self.may_write = Event(), Event()

    def write(self, path: Path, found: Part) -> int:
        self.is_writing.set()
        assert self.may_write.wait(SECONDS)
        return write_part(path, found)


def test_parts_are_written_beside_the_loop_and_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(), Writer()
    monkeypatch.setattr(module, "write_part", disk.write)
    writer.write(tmp_path / "a", part(1), 0, final=False)
    assert disk.is_writing.wait(SECONDS)
    writer.write(tmp_path / "b", part(2), 0, final=True)
    assert list(writer.done()) == []
    disk.may_write.set()
    first, second = all_of(writer, 2)
    assert (first.step, first.final, second.step, second.final) == (1, False, 2, True)
    assert read_part(first.path).header.step == 1
    assert (first.size_bytes, first.path.stat().st_size) == (first.path.stat().st_size, first.size_bytes)
    writer.close()


def test_no_more_than_two_parts_are_in_memory_and_a_disk_that_does_not_get_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, writer = SlowDisk(), Writer()
    monkeypatch.setattr(module, "write_part", disk.write)
    writer.write(tmp_path / "a", part(1), 0, final=False)
    assert not has_no_room(writer)
    writer.write(tmp_path / "b", part(2), 0, final=False)
    assert has_no_room(writer), "and nobody waits: others must hear that we are here"
    monkeypatch.setattr(module, "_DISK_S", 0.0)
    with pytest.raises(OSError, match="the disk has written no part"):
        _ = writer.is_full
    monkeypatch.setattr(module, "_DISK_S", 60.0)
    disk.may_write.set()
    assert [written.step for written in all_of(writer, 2)] == [1, 2]
    writer.write(tmp_path / "c", part(3), 0, final=False)
    assert [written.step for written in all_of(writer, 1)] == [3]
    writer.close()


def test_a_disk_that_cannot_write_is_an_error_of_the_loop(tmp_path: Path) -> None:
    writer = Writer()
    writer.write(tmp_path / "missing" / "a", part(1), 0, final=False)
    with pytest.raises(FileNotFoundError):
        all_of(writer, 1)
    writer.close()


def test_a_copy_is_not_changed_by_later_steps() -> None:
    found = part(0)
    copied = found.copy()
    before = copied.buckets[0].clone()
    found.buckets[0].add_(1)
    assert torch.equal(copied.buckets[0], before)
