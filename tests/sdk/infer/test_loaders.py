"""Inputs that are read ahead by other processes are those that are read here; what ends a loader ends us."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from dmi.infer import config
from dmi.infer.inputs import Bad, Pack
from dmi.infer.loaders import Loaders, loaders_of
from dmi.infer.place import UnreachableError
from dmi.infer.plan import CONFIG, LISTING
from dmi.infer.readers import listing_of, read

pytestmark = pytest.mark.processes


def begun(folder: Path, kind: str, path: Path) -> tuple[config.Config, Any]:
    """What a replica finds in its directory."""
    found = config.of({"model": "m", "input": {"kind": kind, "path": str(path)}, "batch_size": 4})
    listing = listing_of(found)
    (folder / CONFIG).write_bytes(msgspec.json.encode(found))
    (folder / LISTING).write_bytes(msgspec.msgpack.encode(listing))
    return found, listing


def pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"{number:03}.png")


def plain(given: Any) -> list[tuple[Any, str]]:
    return [
        (each.id, str(np.array(each.value).tolist() if not isinstance(each.value, Bad) else each.value))
        for each in given
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_they_read_what_is_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "in", 30)
    (tmp_path / "in" / "007.png").write_bytes(b"no picture")
    found, listing = begun(tmp_path, "images", tmp_path / "in")
    loaders = Loaders(4, count)
    try:
        for start, stop, skip in ((0, 30, ()), (8, 20, (9, 12)), (28, 30, ())):
            assert plain(loaders.read(start, stop, skip)) == plain(read(found, listing, start, stop, skip))
        processes = [process for process, _ in loaders._loaders]
        assert len(processes) == count, "they are kept from slice to slice"
        last = loaders.read(0, 8)
        assert [next(last).id for _ in range(8)][-1] == "007.png"
        last.close()  # nobody asks for more than there is
        assert [process for process, _ in loaders._loaders] == processes
        ahead = loaders.read(0, 30)
        next(ahead)
        ahead.close()  # the rest is not wanted
        assert plain(loaders.read(4, 8)) == plain(read(found, listing, 4, 8))
    finally:
        loaders.close()


def test_a_table_is_read_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n" + "".join(f"{n},{n}.5\n" for n in range(50)) + "1,x\n")
    found, listing = begun(tmp_path, "csv", tmp_path / "x.csv")
    loaders = Loaders(4, 1)
    try:
        assert plain(loaders.read(8, 51)) == plain(read(found, listing, 8, 51))
    finally:
        loaders.close()


def test_what_reading_raises_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text("[1]\n" * 9)
    begun(tmp_path, "jsonl", tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").unlink()
    loaders = Loaders(4, 1)
    try:
        with pytest.raises(OSError, match="No such file"):
            list(loaders.read(0, 9))
    finally:
        loaders.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_what_ends_a_loader_ends_us_in_the_same_way(tmp_path: Path, number: signal.Signals) -> None:
    pictures(tmp_path / "in", 4)
    begun(tmp_path, "images", tmp_path / "in")
    script = (
        "import os, sys; from dmi.infer.loaders import Loaders; made = Loaders(4, 1); made._loaders = [made._start()]; "
        "os.kill(made._loaders[0][0].pid, int(sys.argv[1])); list(made.read(0, 4)); print('it lives')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(int(number))], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (-number, b"")


def test_processors_that_computing_leaves_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))

    def count(kind: str = "images", **more: Any) -> int:
        return loaders_of(config.of({"model": "m", "input": {"kind": kind, "path": "in"}, **more}))

    assert (count(), count("csv"), count(threads=7), count(threads=8)) == (4, 1, 1, 0)
    assert (count(replicas_per_node=2, threads=2), count(replicas_per_node=8)) == (2, 0)
    assert (count(loaders=9), count(loaders=0), count("npy", loaders=9)) == (9, 0, 1)


def test_a_disk_that_gives_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmi.infer.loaders.SILENT_S", 1.0)
    (tmp_path / "x.jsonl").write_text("[1]\n" * 9)
    begun(tmp_path, "jsonl", tmp_path / "x.jsonl")
    os.mkfifo(tmp_path / "silent")
    loaders = Loaders(4, 1)
    try:
        with pytest.raises(UnreachableError, match="nothing has come for 1 s"):
            list(loaders.read(0, 9, (), Pack(str(tmp_path / "silent"), 0)))
        assert len(list(loaders.read(0, 9))) == 9, "another loader reads on"
    finally:
        loaders.close()
