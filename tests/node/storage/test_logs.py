"""What role processes have printed, in bounded pieces from where the reader left off."""

import os
from pathlib import Path

import pytest

from dmi_node.storage import logs
from dmi_node.storage.logs import read_logs


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
    assert sizes == [10, 10, 10, 3]


def test_a_log_that_cannot_be_read_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "1/worker-1", b"text")
    (tmp_path / "1" / "server-0" / "log").mkdir(parents=True)
    gone = tmp_path / "1" / "worker-0" / "log"
    gone.parent.mkdir()
    os.symlink("nowhere", gone)
    assert read_logs(tmp_path, {}) == {"1/worker-1": (0, b"text")}
    assert "server-0/log cannot be read: Is a directory" in caplog.text
