"""What role processes of this host have printed: the beginning and the end of it, where it is much.

A log is one stream of bytes, and a place in it is counted from its beginning. The first bytes are in ``log``; what follows is in
segments that are named by the place where they begin, and of which the last few are kept.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from dmi_protocol import limits

_log = logging.getLogger("dmi.logs")
_MOST = limits.CHUNK_BYTES // 4
_HEAD = limits.LOG_BYTES // 2
_SEGMENT = limits.LOG_BYTES // 8
_SEGMENTS = 4


class LogWriter:
    """The log of one process, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = (directory / "log").open("ab", buffering=0)
        self._written = 0
        self._room = _HEAD

    def write(self, data: bytes) -> None:
        """Add to it; what is neither among the first nor among the last bytes is given up. Raises ``OSError``."""
        left = memoryview(data)
        while left:
            if not self._room:
                self._begin_segment()
            done = self._file.write(left[: self._room])
            left, self._room, self._written = left[done:], self._room - done, self._written + done

    def _begin_segment(self) -> None:
        self._file.close()
        for old in _segments(self._directory)[: 1 - _SEGMENTS]:
            old.unlink(missing_ok=True)
        self._file = (self._directory / f"log.{self._written:015d}").open("ab", buffering=0)
        self._room = _SEGMENT

    def close(self) -> None:
        """Nothing more is printed."""
        self._file.close()


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("log.*"))


def read_logs(job: Path, offsets: dict[str, int]) -> dict[str, tuple[int, bytes]]:
    """By process (``1/worker-0``: generation and role): where the text starts, and the text, a bounded piece of it.

    Processes that are not in ``offsets`` are read from their beginning; one whose log cannot be read is left out. A text that
    starts later than it was asked for follows what was given up. No process waits for another one that prints much.
    """
    texts: dict[str, tuple[int, bytes]] = {}
    left, logs = _MOST, sorted(job.glob("*/*/log"))
    for place, log in enumerate(logs):
        process = f"{log.parent.parent.name}/{log.parent.name}"
        try:
            start, text = _read(log.parent, max(0, offsets.get(process, 0)), left // (len(logs) - place))
        except OSError as error:
            _log.warning("%s cannot be read: %s", log, error.strerror)
            continue
        left -= len(text)
        if text:
            texts[process] = (start, text)
    return texts


def _read(directory: Path, start: int, most: int) -> tuple[int, bytes]:
    for begin, path in _pieces(directory):
        try:
            if begin + path.stat().st_size <= start:
                continue
            at = max(begin, start)
            with path.open("rb") as file:
                file.seek(at - begin)
                return at, file.read(most)
        except FileNotFoundError:
            if not begin:
                raise
            continue  # it was given up meanwhile
    return start, b""


def _pieces(directory: Path) -> Iterator[tuple[int, Path]]:
    """Where each piece that is kept begins."""
    yield 0, directory / "log"
    for path in _segments(directory):
        yield int(path.suffix[1:]), path
