"""What role processes have printed, in bounded pieces from where the reader left off."""

import os
from pathlib import Path

import pytest

from dmi_node.storage import logs
from dmi_node.storage.logs import LogWriter, read_logs


def write(job: Path, process: str, text: bytes) -> Path:
    path = job / process / "log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


def test_a_job_that_never_ran_here_has_printed_nothing(tmp_path: Path) -> None:
    assert read_logs(tmp_path / "nothing", {}) == {}


def test_every_process_of_every_generation_is_read_from_its_offset(tmp_path: Path) -> None:
    write(tmp_path, "1/worker-0", b"first")
    write(tmp_path, "2/worker-0", b"second")
    write(tmp_path, "2/server-0", b"")
    assert read_logs(tmp_path, {}) == {"1/worker-0": (0, b"first"), "2/worker-0": (0, b"second")}
    assert read_logs(tmp_path, {"1/worker-0": 5, "2/worker-0": 3}) == {"2/worker-0": (3, b"ond")}


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "1/worker-0", b"one\n")
    [(start, text)] = read_logs(tmp_path, {}).values()
    with path.open("ab") as file:
        file.write(b"two\n")
    assert read_logs(tmp_path, {"1/worker-0": start + len(text)}) == {"1/worker-0": (4, b"two\n")}


@pytest.mark.parametrize("offset", [-1, -(2**70)])
def test_before_the_beginning_is_the_beginning(tmp_path: Path, offset: int) -> None:
    write(tmp_path, "1/worker-0", b"text")
    assert read_logs(tmp_path, {"1/worker-0": offset}) == {"1/worker-0": (0, b"text")}


def test_behind_the_end_is_nothing(tmp_path: Path) -> None:
    write(tmp_path, "1/worker-0", b"text")
    assert read_logs(tmp_path, {"1/worker-0": 1 << 40, "9/worker-9": 3}) == {}


def test_one_answer_is_bounded_and_the_next_ones_have_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST", 10)
    texts = {"1/server-0": b"a" * 7, "1/worker-0": b"b" * 25, "1/worker-1": b"c"}
    for process, text in texts.items():
        write(tmp_path, process, text)
    read: dict[str, bytes] = {}
    sizes = []
    while found := read_logs(tmp_path, {process: len(text) for process, text in read.items()}):
        sizes.append(sum(len(text) for _, text in found.values()))
        for process, (start, text) in found.items():
            assert start == len(read.get(process, b""))
            read[process] = read.get(process, b"") + text
    assert read == texts
    assert max(sizes) <= 10


def test_a_log_that_cannot_be_read_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "1/worker-1", b"text")
    (tmp_path / "1" / "server-0" / "log").mkdir(parents=True)
    gone = tmp_path / "1" / "worker-0" / "log"
    gone.parent.mkdir()
    os.symlink("nowhere", gone)
    assert read_logs(tmp_path, {}) == {"1/worker-1": (0, b"text")}
    assert "server-0/log cannot be read: Is a directory" in caplog.text


def whole(job: Path) -> list[tuple[int, bytes]]:
    pieces, offset = [], 0
    while found := read_logs(job, {"1/worker-0": offset}):
        start, text = found["1/worker-0"]
        pieces.append((start, text))
        offset = start + len(text)
    return pieces


@pytest.mark.parametrize("size", [0, 99, 100, 280, 1_234])
def test_the_beginning_and_the_end_of_a_long_one_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(logs, "_HEAD", 100)
    monkeypatch.setattr(logs, "_SEGMENT", 50)
    directory, data = tmp_path / "1" / "worker-0", bytes(33 + n % 90 for n in range(size))
    directory.mkdir(parents=True)
    log = LogWriter(directory)
    for start in range(0, size, 30):
        log.write(data[start : start + 30])
    log.close()
    pieces = whole(tmp_path)
    assert all(text == data[start : start + len(text)] for start, text in pieces)
    assert sum(len(text) for _, text in pieces) >= min(size, 250)
    if size:
        assert pieces[0] == (0, data[:100])
        assert pieces[-1][0] + len(pieces[-1][1]) == size
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 300


def test_who_prints_much_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST", 40)
    write(tmp_path, "1/server-0", b"x" * 1_000)
    write(tmp_path, "1/worker-0", b"quiet\n")
    assert read_logs(tmp_path, {}) == {"1/server-0": (0, b"x" * 20), "1/worker-0": (0, b"quiet\n")}
